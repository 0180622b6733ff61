//! What the eBPF programs and the node share: map keys and values.

#![no_std]

//! The way in: eBPF redirection, the listener behind it, and the splice past it.

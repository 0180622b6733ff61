//! The admin port: metrics, health, profile, control.

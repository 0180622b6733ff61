//! A Hub-shaped origin.

//! Every bound of the node, by name.

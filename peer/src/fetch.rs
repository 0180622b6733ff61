//! From a request to a task: store hit, running download, or a new one.

//! The commands of the pondhawk binary.

//! Pieces on disk: layout, index, eviction, recovery. See DESIGN.md beside this file.

//! `metrics`: see DESIGN.

//! `snapshot`: see DESIGN.

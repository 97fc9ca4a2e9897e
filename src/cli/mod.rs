//! `cli`: see DESIGN.

//! `wire`: see DESIGN.

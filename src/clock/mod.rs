//! `clock`: see DESIGN.

//! `daemon`: see DESIGN.

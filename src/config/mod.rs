//! `config`: see DESIGN.

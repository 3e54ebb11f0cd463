//! Synthetic spine CT.

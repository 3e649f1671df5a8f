//! (whole)

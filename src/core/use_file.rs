//! use

//! The one test binary.

mod emulator;

//! The program: everything is in [`rarunet_cuda::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    rarunet_cuda::cli::main()
}

//! `completions`: what a shell needs to complete commands and flags.

use super::output;
use crate::{Error, Result};

/// Print completions of commands and flags for a shell
///
/// Where they go depends on the shell: for bash ~/.local/share/bash-completion/completions/rarunet-cuda, for zsh
/// a file named _rarunet-cuda in a folder of $fpath, for fish ~/.config/fish/completions/rarunet-cuda.fish.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  rarunet-cuda completions bash > ~/.local/share/bash-completion/completions/rarunet-cuda"
)]
pub struct Args {
    #[arg(value_enum, value_name = "SHELL")]
    shell: clap_complete::Shell,
}

pub fn run(args: &Args) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), env!("CARGO_PKG_NAME"), &mut script);
    let script = String::from_utf8(script).map_err(|error| Error::Invalid(format!("completions: {error}")))?;
    output::print(&script)
}

//! `man`: manual pages.

use super::output;
use crate::data::file::write_atomically;
use crate::{Error, Result};
use clap::Command;
use std::io::Write;
use std::path::PathBuf;

/// Print a manual page, or write all of them
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rarunet-cuda man train | man -l -")]
pub struct Args {
    /// The command whose page to print (default: the program's own)
    #[arg(value_name = "COMMAND")]
    command: Option<String>,
    /// Write the pages of all commands into this folder instead
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    out: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    let mut program = super::command();
    program.build();
    let pages: Vec<(String, Command)> = std::iter::once((program.get_name().to_owned(), program.clone()))
        .chain(program.get_subcommands().filter(|command| command.get_name() != "help").map(|command| {
            // The program's name stands before the command's; a page's name has no space.
            (format!("{}-{}", program.get_name(), command.get_name()), command.clone())
        }))
        .collect();
    if let Some(folder) = &args.out {
        for (name, command) in pages {
            let page = page(&name, command)?;
            write_atomically(&folder.join(format!("{name}.1")), |file| file.write_all(&page))?;
        }
        return Ok(());
    }
    let names = program.get_subcommands().map(Command::get_name);
    let wanted = match &args.command {
        None => program.get_name().to_owned(),
        Some(command) => {
            super::flags::known("command", command, names.filter(|name| *name != "help"))?;
            format!("{}-{command}", program.get_name())
        }
    };
    let found = pages.into_iter().find(|(name, _)| *name == wanted);
    let (name, command) = found.ok_or_else(|| Error::Invalid(format!("there is no page {wanted}")))?;
    output::print(&String::from_utf8_lossy(&page(&name, command)?))
}

fn page(name: &str, command: Command) -> Result<Vec<u8>> {
    let mut page = Vec::new();
    let manual = clap_mangen::Man::new(command).title(name.to_uppercase());
    manual.render(&mut page).map_err(Error::io(name))?;
    Ok(page)
}

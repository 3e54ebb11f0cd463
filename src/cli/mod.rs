//! The command line: one file a command, with its flags as they are typed (`Args`) and `run`, which validates
//! them once and does the work.
//!
//! A new command is a `mod` line, a variant of `Command` and an arm of its `run`.
//!
//! Standard output holds what was asked for and nothing else; progress and errors go to standard error. Exit
//! codes: 0 done, 1 failed (one line says what, where and what to change), 2 usage, or that of
//! [`Error::Interrupted`].

pub mod device;
pub mod flags;
pub mod output;

mod bench;
mod compare;
mod corrupt;
mod demo;
mod devices;
mod evaluate;
mod gradcheck;
mod inspect;
mod masks;
mod models;
mod phantom;
mod predict;
mod report;
mod reproduce;
mod signal;
mod suspects;
mod train;

use crate::{Error, Result};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::process::ExitCode;

/// RAR-U-Net in hand-written CUDA and Rust: vertebra segmentation in CT.
#[derive(Debug, Parser)]
#[command(name = "rarunet-cuda", version, arg_required_else_help = true)]
#[command(
    after_help = "Example:\n  rarunet-cuda phantom --out spine\n\n`rarunet-cuda COMMAND --help` has an example of each command."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Args),
    Phantom(phantom::Args),
    Inspect(inspect::Args),
    Corrupt(corrupt::Args),
    Train(Box<train::Args>),
    Suspects(suspects::Args),
    Reproduce(Box<reproduce::Args>),
    Predict(predict::Args),
    Evaluate(evaluate::Args),
    Models(models::Args),
    Gradcheck(gradcheck::Args),
    Bench(bench::Args),
    Devices(devices::Args),
}

impl Command {
    fn run(&self) -> Result<()> {
        match self {
            Command::Demo(args) => demo::run(args),
            Command::Phantom(args) => phantom::run(args),
            Command::Inspect(args) => inspect::run(args),
            Command::Corrupt(args) => corrupt::run(args),
            Command::Train(args) => train::run(args),
            Command::Suspects(args) => suspects::run(args),
            Command::Reproduce(args) => reproduce::run(args),
            Command::Predict(args) => predict::run(args),
            Command::Evaluate(args) => evaluate::run(args),
            Command::Models(args) => models::run(args),
            Command::Gradcheck(args) => gradcheck::run(args),
            Command::Bench(args) => bench::run(args),
            Command::Devices(args) => devices::run(args),
        }
    }
}

/// The commands and their flags; a negative number is a flag's value, not a flag, so that what is said is what is wrong
/// with the number.
fn command() -> clap::Command {
    let numbers = |argument: clap::Arg| match argument.get_action().takes_values() {
        true => argument.allow_negative_numbers(true),
        false => argument,
    };
    Cli::command().mut_subcommands(|command| command.mut_args(numbers))
}

/// Parses the arguments, runs the command, prints what went wrong, and says how the program ends.
pub fn main() -> ExitCode {
    let cli = match command().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match cli.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::note(&format!("error: {error}"));
            match error {
                Error::Interrupted { exit_code } => ExitCode::from(exit_code),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// Prints help or version if they were asked for, else what is wrong with the arguments, in one line.
fn usage(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind;
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // A reader that has gone away has read enough.
        let _ = error.print();
        return ExitCode::from(error.exit_code() as u8);
    }
    let text = error.render().to_string();
    let said =
        text.split("\n\n").map(str::trim).filter(|part| !part.starts_with("Usage:") && !part.starts_with("For more"));
    output::note(&said.collect::<Vec<_>>().join("; "));
    ExitCode::from(2)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_commands_are_well_formed_and_each_has_an_example() {
        let mut cli = super::command();
        cli.build();
        cli.clone().debug_assert();
        for command in cli.get_subcommands().filter(|command| command.get_name() != "help") {
            let help = command.clone().render_help().to_string();
            let example = format!("Example:\n  rarunet-cuda {}", command.get_name());
            assert!(help.contains(&example), "{help}");
        }
    }
}

//! Help of the whole program: its commands by purpose, under the program's own name.

use std::fmt::Write as _;

use clap::Command;

/// Commands by purpose. A test compares the list with the commands.
const GROUPS: [(&str, &[&str]); 5] = [
    ("Run", &["serve", "check-config", "healthcheck", "config", "completions", "man"]),
    ("Inspect", &["attention", "instances", "jobs", "callbacks", "audit"]),
    ("Repair", &["held", "backup", "restore", "prune"]),
    ("Keys", &["keys", "seal", "market"]),
    (
        "Develop",
        &["demo", "sign", "verify", "route", "hook", "replay", "fixtures", "conformance", "simulate"],
    ),
];

const AFTER: &str = "`spid COMMAND --help` explains a command; `spid COMMAND SUBCOMMAND --help` a subcommand. \
Commands that show data print JSON with --json. Every change by hand needs --why, and is in the audit log. Exit \
codes follow sysexits.h.";

/// Adds the list of commands in groups, in place of clap's one long list.
pub(super) fn grouped(command: Command) -> Command {
    let mut groups = String::new();
    for (title, names) in GROUPS {
        let _ = write!(groups, "\n{title}:\n");
        for name in names {
            let about = command.find_subcommand(name).and_then(Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            let _ = writeln!(groups, "  {name:<13} {about}");
        }
    }
    let head = "{before-help}{about-with-newline}\n{usage-heading} {usage}\n";
    command
        .help_template(format!("{head}{groups}\nGlobal options:\n{{options}}{{after-help}}"))
        .after_help(AFTER)
}

/// Puts the name of the program in place of `spid` in the help of all commands.
pub(super) fn renamed(command: Command, program: &str) -> Command {
    let texts = [command.get_about(), command.get_long_about(), command.get_after_help()];
    let [about, long_about, after_help] =
        texts.map(|text| text.map(|text| named(&text.to_string(), program)));
    let mut command = command
        .mut_args(|argument| {
            let help = argument.get_help().map(|help| named(&help.to_string(), program));
            match help {
                Some(help) => argument.help(help),
                None => argument,
            }
        })
        .mut_subcommands(|inner| renamed(inner, program));
    if let Some(about) = about {
        command = command.about(about);
    }
    if let Some(long_about) = long_about {
        command = command.long_about(long_about);
    }
    if let Some(after_help) = after_help {
        command = command.after_help(after_help);
    }
    command
}

/// Puts the name of the program in place of `spid` in the commands that a text quotes.
pub(super) fn named(text: &str, program: &str) -> String {
    text.replace("`spid ", &format!("`{program} "))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Arguments;

    #[test]
    fn every_command_is_in_one_group() {
        let command = Arguments::command();
        let visible = command.get_subcommands().filter(|command| !command.is_hide_set());
        let commands: BTreeSet<&str> = visible.map(Command::get_name).collect();
        let grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        assert_eq!(grouped.len(), commands.len(), "a command is there twice, or missing");
        assert_eq!(grouped.into_iter().collect::<BTreeSet<_>>(), commands);
    }

    #[test]
    fn a_line_of_the_list_fits_a_terminal() {
        for command in Arguments::command().get_subcommands() {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            assert!((1..=84).contains(&about.len()), "{}: {about}", command.get_name());
        }
    }

    #[test]
    fn a_program_of_its_own_is_named_in_every_help() {
        fn check(command: &mut Command) {
            let help = command.render_long_help().to_string();
            assert!(!help.contains("`spid "), "{help}");
            command.get_subcommands_mut().for_each(check);
        }
        check(&mut renamed(grouped(Arguments::command()), "acme-receiver"));
    }
}

//! Mistakes in a configuration, each with its place and key.

use std::path::Path;

/// Place of a mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The configuration file.
    File {
        /// Line number, from 1; `None` if a part of the file is missing or the whole file is wrong.
        line: Option<usize>,
    },
    /// Environment variable with this name.
    Variable(String),
    /// Flag with this name.
    Flag(&'static str),
}

/// Mistake in the configuration, with its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Name of the key, like `server.listen` or `endpoint[0].keys[1].file`; empty for the whole file.
    pub key: String,
    /// Place of the mistake.
    pub origin: Origin,
    /// Problem, and the action to take. Never contains a secret key.
    pub text: String,
}

/// All mistakes of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes {
    /// Name of the source: the path of the file, or `--dev`.
    pub source: String,
    /// List of mistakes; never empty.
    pub mistakes: Vec<Mistake>,
}

impl Mistake {
    /// Formats the mistake as one line: `spid.toml:3: `server.listen`: …`.
    pub(super) fn line(&self, source: &str) -> String {
        let Mistake { key, origin, text } = self;
        let place = match origin {
            Origin::File { line: Some(line) } => format!("{source}:{line}"),
            Origin::File { line: None } => source.to_owned(),
            Origin::Variable(name) => name.clone(),
            Origin::Flag(name) => (*name).to_owned(),
        };
        if key.is_empty() { format!("{place}: {text}") } else { format!("{place}: `{key}`: {text}") }
    }
}

impl Mistakes {
    /// Creates a mistake about the whole file.
    pub(super) fn whole(path: &Path, text: String) -> Mistakes {
        let mistake = Mistake { key: String::new(), origin: Origin::File { line: None }, text };
        Mistakes { source: path.display().to_string(), mistakes: vec![mistake] }
    }

    /// Returns the mistakes, each as one line: `spid.toml:3: `server.listen`: …`.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.mistakes.iter().map(|mistake| mistake.line(&self.source))
    }
}

impl std::fmt::Display for Mistakes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.lines().collect::<Vec<_>>().join("\n"))
    }
}

impl std::error::Error for Mistakes {}

//! `[log]`: level and format.

use tracing::level_filters::LevelFilter;

use super::reader::Table;

spid_hook::words! {
    /// Format of the log.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub enum LogFormat {
        /// Text for people.
        #[default]
        Text = "text",
        /// JSON for programs: one object per line.
        Json = "json",
    }
}

impl std::str::FromStr for LogFormat {
    type Err = String;

    fn from_str(word: &str) -> Result<LogFormat, String> {
        LogFormat::from_word(word).ok_or_else(|| "use text or json".to_owned())
    }
}

pub(super) fn log(table: &Table<'_>) -> (LevelFilter, LogFormat) {
    let words = [
        ("off", LevelFilter::OFF),
        ("error", LevelFilter::ERROR),
        ("warn", LevelFilter::WARN),
        ("info", LevelFilter::INFO),
        ("debug", LevelFilter::DEBUG),
        ("trace", LevelFilter::TRACE),
    ];
    let formats = LogFormat::ALL.map(|format| (format.as_str(), format));
    (table.choice("level", LevelFilter::INFO, &words), table.choice("format", LogFormat::default(), &formats))
}

//! Report of the figures: a table, JSON, and a page for the documents.

use std::fmt::Write as _;

/// Text below the figures, written by hand. It mentions no figure that a run could change.
const BOUNDS: &str = include_str!("bounds.md");

/// Median of the rounds, and their spread.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub(crate) struct Figure {
    pub(crate) median: f64,
    pub(crate) lowest: f64,
    pub(crate) highest: f64,
}

impl Figure {
    pub(crate) fn of(mut rounds: Vec<f64>) -> Figure {
        rounds.sort_by(f64::total_cmp);
        let last = rounds.len() - 1;
        Figure { median: rounds[rounds.len() / 2], lowest: rounds[0], highest: rounds[last] }
    }

    pub(crate) fn shown(&self, digits: usize) -> String {
        if self.lowest == self.highest {
            return format!("{:.digits$}", self.median);
        }
        format!("{:.digits$} ({:.digits$} to {:.digits$})", self.median, self.lowest, self.highest)
    }
}

/// A row of the report: the measurement, the result and the goal.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) found: String,
    pub(crate) goal: Option<String>,
    /// True if the goal was reached; `None` without a goal.
    pub(crate) reached: Option<bool>,
}

/// A section of the report.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Section {
    pub(crate) title: String,
    pub(crate) note: String,
    pub(crate) rows: Vec<Row>,
}

impl Section {
    pub(crate) fn new(title: &str, note: &str) -> Section {
        Section { title: title.to_owned(), note: note.to_owned(), rows: Vec::new() }
    }

    pub(crate) fn line(&mut self, what: impl Into<String>, found: impl Into<String>) {
        self.rows.push(Row { what: what.into(), found: found.into(), goal: None, reached: None });
    }

    /// Adds a figure that should be at least `goal`.
    pub(crate) fn at_least(&mut self, what: impl Into<String>, figure: Figure, goal: f64) {
        self.goal(what, figure.shown(2), format!("≥ {goal}"), figure.median >= goal);
    }

    /// Adds a figure that should be at most `goal`.
    pub(crate) fn at_most(&mut self, what: impl Into<String>, found: f64, goal: f64, unit: &str) {
        self.goal(what, format!("{found:.1} {unit}"), format!("≤ {goal} {unit}"), found <= goal);
    }

    pub(crate) fn goal(&mut self, what: impl Into<String>, found: String, goal: String, reached: bool) {
        self.rows.push(Row { what: what.into(), found, goal: Some(goal), reached: Some(reached) });
    }
}

#[derive(Debug, serde::Serialize)]
pub(crate) struct Report {
    machine: String,
    sync_ms: f64,
    version: &'static str,
    /// The command-line arguments of the run.
    arguments: String,
    pub(crate) sections: Vec<Section>,
}

impl Report {
    pub(crate) fn new(machine: String, sync_ms: f64, arguments: String) -> Report {
        let version = env!("CARGO_PKG_VERSION");
        Report { machine, sync_ms, version, arguments, sections: Vec::new() }
    }

    pub(crate) fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap()
    }

    pub(crate) fn table(&self) -> String {
        let mut text = format!("{}; one durable write takes {:.2} ms\n", self.machine, self.sync_ms);
        for section in &self.sections {
            let _ = writeln!(text, "\n{}", section.title);
            for row in &section.rows {
                let mark = match row.reached {
                    Some(true) => "✓",
                    Some(false) => "✗",
                    None => " ",
                };
                let goal = row.goal.as_deref().map(|goal| format!("   (goal {goal})")).unwrap_or_default();
                let _ = writeln!(text, "  {mark} {:<58} {}{goal}", row.what, row.found);
            }
        }
        text
    }

    pub(crate) fn document(&self) -> String {
        let mut text = format!(
            "# Performance\n\nWritten by `cargo bench --bench spid -- {}`, not by hand: spid {}, {}; \
             one durable write of a page takes {:.2} ms there. Ratios are valid within this run; run the same \
             command on your machine.\n\nA figure is the median of its rounds, with the lowest and the highest in brackets; rounds of \
             what is compared are interleaved.\n",
            self.arguments, self.version, self.machine, self.sync_ms
        );
        for section in &self.sections {
            let _ = write!(
                text,
                "\n## {}\n\n{}\n\n| | found | goal | |\n|---|---|---|---|\n",
                section.title, section.note
            );
            for row in &section.rows {
                let mark = match row.reached {
                    Some(true) => "reached",
                    Some(false) => "**missed**",
                    None => "",
                };
                let goal = row.goal.as_deref().unwrap_or_default();
                let _ = writeln!(text, "| {} | {} | {goal} | {mark} |", row.what, row.found);
            }
        }
        text.push_str(BOUNDS);
        text
    }
}

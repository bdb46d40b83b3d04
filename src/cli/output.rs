//! Output of commands: text for people, JSON for programs.

use std::io::{ErrorKind, Write};

use serde::Serialize;
use unicode_width::UnicodeWidthStr as _;

use super::daemon::stderr::Stderr;
use super::{Exit, Failure, help};
use spid_hook::text;

/// Stdout and stderr. If the reader of stdout closes it (`| head`), that is no error: later lines are discarded.
pub(super) struct Output {
    closed: bool,
    stderr: Stderr,
    program: &'static str,
}

impl Output {
    /// Creates an output that writes to stdout and to `stderr`, for a program with this name.
    pub(super) fn new(stderr: Stderr, program: &'static str) -> Output {
        Output { closed: false, stderr, program }
    }

    /// Writes a line of data to stdout.
    pub(super) fn line(&mut self, line: &str) -> Result<(), Failure> {
        if self.closed {
            return Ok(());
        }
        // The line may quote text of another program, so control characters are escaped.
        match writeln!(std::io::stdout().lock(), "{}", text::plain_lines(line)) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                // Discard later output, but let the command finish its work.
                self.closed = true;
                Ok(())
            }
            Err(error) => Err(Failure::new(Exit::Io, format!("stdout cannot be written: {error}"))),
        }
    }

    /// Writes a text that contains its own line breaks.
    pub(super) fn text(&mut self, text: &str) -> Result<(), Failure> {
        self.line(text.strip_suffix('\n').unwrap_or(text))
    }

    /// Writes a value as indented JSON.
    pub(super) fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value).map_err(|error| {
            Failure::new(Exit::Bug, format!("internal error: the output cannot be written as JSON: {error}"))
        })?;
        self.line(&text::plain_json(&text))
    }

    /// Writes a table of rows that know their columns.
    pub(super) fn rows<R: Row>(&mut self, rows: &[R]) -> Result<(), Failure> {
        let header: Vec<&str> = R::COLUMNS.iter().map(|(name, _)| *name).collect();
        let mut lines = Vec::new();
        for row in rows {
            lines.push(R::COLUMNS.iter().map(|(_, cell)| cell(row)).collect());
        }
        self.table(&header, &lines)
    }

    /// Writes a table: a header, and rows with one cell for each column. Columns are as wide as their widest cell.
    pub(super) fn table(&mut self, header: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
        for line in aligned(header, rows) {
            self.line(&line)?;
        }
        Ok(())
    }

    /// Writes a line to stderr: errors, warnings and hints. The commands in it get the name of the program.
    pub(super) fn print_error(&mut self, line: &str) {
        let line = &help::named(line, self.program);
        self.stderr.write(format!("{}\n", text::plain_lines(line)).as_bytes());
    }
}

/// Column of a table: its name, and the text of its cell in a row.
pub(super) type Column<R> = (&'static str, fn(&R) -> String);

/// Row of a table for people.
pub(super) trait Row: Sized + 'static {
    /// Columns of the table.
    const COLUMNS: &'static [Column<Self>];
}

/// Returns the lines of a table.
fn aligned(header: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let mut lines = vec![header.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>()];
    for row in rows {
        lines.push(row.iter().map(|cell| shown(cell)).collect());
    }
    // Widths are columns of the terminal: a Chinese character in the name of a buyer takes two.
    let mut widths = vec![0; header.len()];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.width().max(*width);
        }
    }
    lines.iter().map(|line| padded(line, &widths)).collect()
}

fn padded(cells: &[String], widths: &[usize]) -> String {
    let mut line = String::new();
    for (cell, width) in cells.iter().zip(widths) {
        line.push_str(cell);
        line.push_str(&" ".repeat(width.saturating_sub(cell.width()) + 2));
    }
    // The last column needs no padding.
    line.trim_end().to_owned()
}

/// Escapes a text from outside for a terminal: control characters and characters that change the text direction.
pub(super) fn shown(text: &str) -> String {
    text::plain(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_characters_take_two_columns() {
        let rows = [["杭州", "a"], ["acme", "b"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(aligned(&["BUYER", "SKU"], &rows), ["BUYER  SKU", "杭州   a", "acme   b"]);
    }

    #[test]
    fn hostile_text_cannot_move_the_cursor() {
        assert_eq!(shown("a\u{1b}[2Jb\n中"), "a\\u{1b}[2Jb\\n中");
        assert_eq!(shown("i-\u{202e}1"), "i-\\u{202e}1");
    }
}

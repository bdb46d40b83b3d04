//! Lines of a program of the test, read with a time limit.

use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// Maximum wait for a line. Only a broken program needs that long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Reads the output of a program to its end.
pub(crate) struct Said(Receiver<String>);

impl Said {
    pub(crate) fn by(output: impl Read + Send + 'static) -> Said {
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // Continue to read after the test has ended, because a full pipe would stop the program.
                let _ = sender.send(line);
            }
        });
        Said(lines)
    }

    /// Next line, without its line break.
    pub(crate) fn line(&self) -> String {
        match self.0.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) => panic!("the program has ended without another line"),
            Err(RecvTimeoutError::Timeout) => panic!("the program has written no line for {PATIENCE:?}"),
        }
    }
}

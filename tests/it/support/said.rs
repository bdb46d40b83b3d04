//! The lines a program of the test's own writes, read without waiting for ever.

use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// The longest wait for a line. Only a broken program is that slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// Follows the output of a program to its end.
pub(crate) struct Said(Receiver<String>);

impl Said {
    pub(crate) fn by(output: impl Read + Send + 'static) -> Said {
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // The test may have heard enough; the program must not be stopped by a full pipe.
                let _ = sender.send(line);
            }
        });
        Said(lines)
    }

    /// The next line, without its line break.
    pub(crate) fn line(&self) -> String {
        match self.0.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) => panic!("the program has ended without another line"),
            Err(RecvTimeoutError::Timeout) => panic!("the program has written no line for {PATIENCE:?}"),
        }
    }
}

//! Log on stderr: its filter, and its format (text or JSON). docs/logging.md describes both formats.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::ser::{SerializeMap as _, Serializer as _};
use serde_json::{Map, Value};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_serde::{AsSerde as _, SerdeMapVisitor};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::{DefaultFields, Format, JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use crate::cli::daemon::stderr::Stderr;
use crate::cli::{Exit, Failure};
use crate::config::LogFormat;
use crate::observe::metrics::Metrics;
use spid_hook::text;

/// Function that replaces the log filter.
type Change = Box<dyn Fn(EnvFilter) + Send + Sync>;

/// Log filter and log format, if a configuration may still set them.
pub(crate) struct Logging {
    /// Sets the filter; `None` if the command line has set it.
    change: Option<Change>,
    /// Sets the format; `None` if the command line has set it.
    shape: Option<Shape>,
    stderr: Stderr,
}

impl Logging {
    /// Starts logging to stderr. The filter is `filter`, or else `usual` until a configuration is read; the format
    /// follows the same rule.
    pub(crate) fn start(
        filter: Option<&str>,
        usual: &str,
        format: Option<LogFormat>,
        stderr: Stderr,
    ) -> Result<Logging, Failure> {
        let text = filter.unwrap_or(usual);
        let read = EnvFilter::try_new(text).map_err(|error| {
            Failure::new(Exit::Usage, format!("`--log {text}` is not a filter: {error}"))
                .hint("it is error, warn, info or debug, or by module: spid::hook=debug,info")
        })?;
        let shape = Shape::default();
        shape.set(format.unwrap_or_default());
        let logger = tracing_subscriber::fmt()
            .with_env_filter(read)
            .with_writer(stderr.clone())
            // tracing-subscriber would write internal errors to standard error directly, and panic if that fails.
            .log_internal_errors(false)
            .with_ansi(false)
            .fmt_fields(shape.clone())
            .event_format(shape.clone())
            .with_filter_reloading();
        let handle = logger.reload_handle();
        // If the embedding program has installed a logger already, that logger decides.
        let ours = logger.try_init().is_ok();
        let change: Change = Box::new(move |filter| drop(handle.reload(filter)));
        Ok(Logging {
            // A choice of the command line is final, so a reload cannot change it.
            change: (ours && filter.is_none()).then_some(change),
            shape: (ours && format.is_none()).then_some(shape),
            stderr,
        })
    }

    /// Makes the log non-blocking: lines are queued, and dropped and counted in `metrics` if they cannot be written.
    /// Panics are logged in the same way. Starts a thread.
    pub(crate) fn never_wait(&self, metrics: Metrics) -> Result<(), Failure> {
        let failed = |error| {
            Failure::new(Exit::Io, format!("the thread that writes the log cannot be started: {error}"))
        };
        self.stderr.start_queue(metrics).map_err(failed)?;
        // The default panic hook writes to standard error directly, and would wait for its reader.
        std::panic::set_hook(Box::new(|panic| {
            let thread = std::thread::current();
            let place = panic.location().map(ToString::to_string).unwrap_or_default();
            let payload = panic.payload();
            let text = payload.downcast_ref::<&str>().copied();
            let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
            let message = text.unwrap_or("a value that is not text");
            // Captured only if RUST_BACKTRACE asks for it.
            let trace = Backtrace::capture();
            let trace = if trace.status() == BacktraceStatus::Captured {
                format!("\n{trace}")
            } else {
                String::new()
            };
            tracing::error!(part = thread.name(), "panicked at {place}: {message}{trace}");
        }));
        Ok(())
    }

    /// Applies the level and the format of the configuration.
    pub(crate) fn configure(&self, level: LevelFilter, format: LogFormat) {
        if let Some(shape) = &self.shape {
            shape.set(format);
        }
        if let Some(change) = &self.change {
            change(EnvFilter::default().add_directive(level.into()));
        }
    }
}

/// Format of log lines. Clones share it, and it can change while lines are written.
#[derive(Clone, Default)]
struct Shape {
    json: Arc<AtomicBool>,
}

impl Shape {
    fn set(&self, format: LogFormat) {
        self.json.store(format == LogFormat::Json, Ordering::Relaxed);
    }

    fn is_json(&self) -> bool {
        self.json.load(Ordering::Relaxed)
    }
}

impl<'w> FormatFields<'w> for Shape {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        if self.is_json() {
            JsonFields::new().format_fields(writer, fields)
        } else {
            DefaultFields::new().format_fields(writer, fields)
        }
    }
}

impl<S, N> FormatEvent<S, N> for Shape
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if self.is_json() {
            let line = object(context, event).map_err(|_| fmt::Error)?;
            return writeln!(writer, "{line}");
        }
        let mut line = String::new();
        Format::default().format_event(context, Writer::new(&mut line), event)?;
        writeln!(writer, "{}", one_line(&line))
    }
}

/// Escapes line breaks and control characters, so that text of a hook or a marketplace cannot look like our own line.
fn one_line(text: &str) -> Cow<'_, str> {
    text::plain_log(text.trim_end_matches('\n'))
}

/// Formats an event as one flat JSON object with the fields of the event and of its spans. The JSON format of
/// tracing-subscriber nests the span fields, but a collector finds the trace ids only at the top level
/// (opentelemetry.io/docs/specs/otel/compatibility/logging_trace_context).
fn object<S, N>(context: &FmtContext<'_, S, N>, event: &Event<'_>) -> Result<String, serde_json::Error>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    let mut line = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut line);
    let mut map = serializer.serialize_map(None)?;
    map.serialize_entry("timestamp", &now())?;
    map.serialize_entry("level", &event.metadata().level().as_serde())?;
    map.serialize_entry("target", event.metadata().target())?;
    // Outer spans come first.
    for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
        let extensions = span.extensions();
        let fields = extensions.get::<FormattedFields<N>>().map_or("", |fields| fields.fields.as_str());
        // A span that began while the format was text has no JSON fields.
        for (name, value) in serde_json::from_str::<Map<String, Value>>(fields).unwrap_or_default() {
            map.serialize_entry(&name, &value)?;
        }
    }
    let mut visitor = SerdeMapVisitor::new(map);
    event.record(&mut visitor);
    visitor.take_serializer()?.end()?;
    // JSON strings may contain characters that terminals interpret, so these are escaped, too.
    Ok(text::plain_json(&String::from_utf8_lossy(&line)).into_owned())
}

fn now() -> String {
    let mut text = String::new();
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Mutex, PoisonError};

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Paper {
        type Writer = Paper;

        fn make_writer(&self) -> Paper {
            self.clone()
        }
    }

    /// Output of an event that is logged in format `said`, in a span that began in format `began`.
    fn written(began: LogFormat, said: LogFormat, say: impl FnOnce()) -> String {
        let (paper, shape) = (Paper::default(), Shape::default());
        let logger = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(paper.clone())
            .fmt_fields(shape.clone())
            .event_format(shape.clone());
        shape.set(began);
        tracing::subscriber::with_default(logger.finish(), || {
            let span = tracing::error_span!("request", trace_id = "abc");
            shape.set(said);
            span.in_scope(say);
        });
        let written = paper.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        String::from_utf8(written).unwrap()
    }

    #[test]
    fn a_line_break_in_what_is_said_does_not_begin_a_line() {
        let say = || tracing::info!(who = "a\nb", "no\n2026 ERROR forged\r\x1b[31m");
        for format in LogFormat::ALL {
            let text = written(format, format, say);
            assert_eq!(text.matches('\n').count(), 1, "{text:?}");
            assert!(text.ends_with('\n') && !text.contains(['\r', '\x1b']), "{text:?}");
            assert!(text.contains("abc") && text.contains("forged"), "{text:?}");
        }
    }

    #[test]
    fn a_span_that_began_in_the_other_format_spoils_no_line() {
        let say = || tracing::info!(callback = 17, "received");
        let text = written(LogFormat::Text, LogFormat::Json, say);
        let line: Map<String, Value> = serde_json::from_str(&text).unwrap();
        assert_eq!((&line["message"], &line["callback"]), (&Value::from("received"), &Value::from(17)));
        assert!(written(LogFormat::Json, LogFormat::Text, say).contains("received callback=17"));
    }
}

//! Trace ids of a callback, from the request that delivered it to the last attempt of its hook: the ids of W3C
//! Trace Context (w3.org/TR/trace-context).
//!
//! Nothing is stored for a trace. A request has an [`Id`], and the job it creates has the same id. The 128 bits
//! of that id *are* the id of the trace. The span of the request is the second half of the id. The span of an
//! attempt is computed from that and from the attempt's number. So the id of a job gives its trace and all
//! spans in it, after any number of restarts. And a line of the log gives the job.
//!
//! An id from outside never becomes an id of ours, because it would become the idempotency key of a hook. It is
//! recorded beside ours.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::id::Id;

/// Id of a trace; never zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraceId([u8; 16]);

/// Id of a span in a trace; never zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpanId(u64);

/// Position in a trace: the ids of a trace and of a span in it.
///
/// ```
/// use spid_hook::trace::TraceContext;
/// let job = "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
/// let attempt = TraceContext::of_attempt(job, 2);
/// assert_eq!(attempt.to_string(), "00-01890a5dac96774bbcceb302099a8057-bcceb302099a8055-01");
/// assert_eq!(TraceContext::of_request(job).span.to_string(), "bcceb302099a8057");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The id of the trace.
    pub trace: TraceId,
    /// The id of the span.
    pub span: SpanId,
}

/// Length of a `traceparent` of version 00, in bytes.
const LENGTH: usize = 55;

impl TraceId {
    /// Returns the trace of a request, and of the job it created. An [`Id`] has fixed bits that are set, so the
    /// result is never zero.
    pub fn of(id: Id) -> TraceId {
        TraceId(*id.as_bytes())
    }
}

impl TraceContext {
    /// Returns the span of the request that created the job with this id.
    pub fn of_request(id: Id) -> TraceContext {
        let bytes = id.as_bytes();
        // The second half begins with the variant bits of the UUID, so it is never zero.
        let half = bytes.last_chunk::<8>().map_or(1, |half| u64::from_be_bytes(*half));
        TraceContext { trace: TraceId::of(id), span: SpanId(half) }
    }

    /// Returns the span of an attempt at a job. The first bit of a request's span is set, and no attempt has so
    /// high a number. So the span is not zero, and no other attempt has the same span.
    pub fn of_attempt(job: Id, attempt: u32) -> TraceContext {
        let TraceContext { trace, span } = TraceContext::of_request(job);
        TraceContext { trace, span: SpanId(span.0 ^ u64::from(attempt)) }
    }

    /// Reads a `traceparent`, as strictly as its standard requires. Of a later version it reads the part that
    /// version 00 defines.
    pub fn read(text: &str) -> Option<TraceContext> {
        let (known, more) = text.split_at_checked(LENGTH)?;
        let mut parts = known.split('-');
        let version: [u8; 1] = unhex(parts.next()?)?;
        let trace: [u8; 16] = unhex(parts.next()?)?;
        let span: [u8; 8] = unhex(parts.next()?)?;
        let _flags: [u8; 1] = unhex(parts.next()?)?;
        // Version ff is invalid. A later version may append more fields after a `-`.
        let ends = match version {
            [0] => more.is_empty(),
            [0xff] => false,
            _ => more.is_empty() || more.starts_with('-'),
        };
        let is_set = trace != [0; 16] && span != [0; 8];
        let context = TraceContext { trace: TraceId(trace), span: SpanId(u64::from_be_bytes(span)) };
        (ends && is_set && parts.next().is_none()).then_some(context)
    }
}

/// Decodes hexadecimal digits. Only lower case is allowed by the standard.
fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let plain = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    hex::decode_to_slice(text, &mut bytes).ok().filter(|()| plain).map(|()| bytes)
}

/// Format of the header `traceparent`. The flag is always "sampled": the called service must not drop its own
/// spans only because nothing collects ours.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-01", self.trace, self.span)
    }
}

/// Formats the id without an allocation, because log lines contain it.
impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for TraceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for SpanId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::time::from_millis;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_read_as_its_standard_says_and_not_otherwise() {
        let read = TraceContext::read(GOOD).unwrap();
        assert_eq!(read.trace.to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(read.span.to_string(), "b7ad6b7169203331");
        assert_eq!(read.to_string(), GOOD);
        assert_eq!(TraceContext::read(&GOOD.replace("00-0af", "cc-0af")), Some(read), "a later version");
        assert_eq!(
            TraceContext::read(&format!("{}-what-else", GOOD.replace("00-0af", "cc-0af"))),
            Some(read)
        );
        for (bad, why) in [
            (String::new(), "nothing"),
            (GOOD.replace("0af7", "0AF7"), "upper case"),
            (GOOD.replace("00-0af", "ff-0af"), "the version that is none"),
            (format!("{GOOD}-x"), "more than version 00 has"),
            (format!("{}x", GOOD.replace("00-0af", "cc-0af")), "a later version whose flags do not end"),
            (GOOD[..54].to_owned(), "too short"),
            (GOOD.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)), "no trace"),
            (GOOD.replace("b7ad6b7169203331", &"0".repeat(16)), "no span"),
            (GOOD.replace("-b7", "_b7"), "another mark"),
            (GOOD.replace("-01", "-0g"), "no hex"),
            (format!(" {GOOD}"), "a space before"),
            ("é".repeat(28), "no ASCII"),
        ] {
            assert_eq!(TraceContext::read(&bad), None, "{why}: {bad}");
        }
    }

    proptest! {
        #[test]
        fn what_anybody_writes_is_read_or_not_and_read_means_equal(text in ".{0,80}") {
            if let Some(read) = TraceContext::read(&text) {
                prop_assert!(text.contains(&read.trace.to_string()) && text.contains(&read.span.to_string()));
            }
        }

        #[test]
        fn spans_of_one_job_are_its_own_and_none_is_zero(random: [u8; 16], attempt in 1..=u32::MAX) {
            let job = Id::from_parts(from_millis(1_760_000_000_000), random);
            let (request, first) = (TraceContext::of_request(job), TraceContext::of_attempt(job, attempt));
            prop_assert_ne!(request.span, first.span);
            prop_assert_ne!(first.span, TraceContext::of_attempt(job, attempt.wrapping_add(1)).span);
            prop_assert_eq!(TraceContext::read(&first.to_string()), Some(first));
            prop_assert_eq!(request.trace.to_string(), job.to_string().replace('-', ""));
        }
    }
}

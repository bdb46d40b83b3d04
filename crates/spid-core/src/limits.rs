//! Bounds and defaults of the rules, units last in the name.

pub use spid_hook::limits::{NAME_MAX_BYTES, RETRY_AFTER_MAX_S};

/// Maximum clock difference of a signed request with a date, in milliseconds.
pub const DATED_WINDOW_MS: i64 = 5 * 60 * 1000;
/// Maximum time in milliseconds between now and the known expiry for which a repeated expire is accepted.
pub const EXPIRE_EARLY_MS: i64 = 24 * 60 * 60 * 1000;
/// Minimum time between two attempts that are caused by redeliveries, in milliseconds.
pub const FORWARD_GAP_MS: i64 = 30_000;
/// Maximum clock difference of a request with a nonce, in milliseconds. KooGallery allows one minute
/// (support.huaweicloud.com/accessg-marketplace/zh-cn_topic_0070649476.html).
pub const NONCED_WINDOW_MS: i64 = 60 * 1000;
/// Maximum number of instances in one query (KooGallery's limit of 100).
pub const QUERY_MAX_COUNT: usize = 100;
/// Maximum length of a parameter name, in bytes after decoding.
pub const PARAMETER_NAME_MAX_BYTES: usize = 128;
/// Maximum length of a parameter value, in bytes after decoding.
pub const PARAMETER_VALUE_MAX_BYTES: usize = 8 * 1024;
/// Maximum number of parameters in one request, query and form together.
pub const PARAMETERS_MAX_COUNT: usize = 128;
/// Random part of a retry's wait, in percent, so that a thousand jobs that failed together are not retried
/// together.
pub const RETRY_JITTER_PERCENT: u64 = 10;
/// Default retry schedule: seconds to wait after the first failure, the second, and so on. Then the job is
/// dead.
pub const RETRY_SCHEDULE_S: [u64; 9] = [5, 30, 120, 600, 1_800, 3_600, 7_200, 14_400, 28_800];

/// Time in milliseconds for which a settled callback still succeeds after its success was reported. The
/// marketplace may not have received the answer.
pub const SETTLED_REPEAT_MS: i64 = 24 * 60 * 60 * 1000;

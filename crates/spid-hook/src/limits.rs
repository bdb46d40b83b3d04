//! Bounds of the hook contract and of the test kit, units last in the name.

/// Maximum wait that a hook may ask for (`Retry-After`), in seconds.
pub const RETRY_AFTER_MAX_S: u64 = 8 * 60 * 60;
/// Maximum length of a stored error or reason text, in bytes.
pub const REASON_MAX_BYTES: usize = 1024;
/// Maximum length of the name of an instance (its id, its order business id), in bytes.
pub const NAME_MAX_BYTES: usize = 256;
/// Maximum size of a call that `exec_main` and `http_main` read, in bytes. A callback has 64 KiB, and its JSON in a
/// call is at most some ten times as long.
pub const CALL_MAX_BYTES: usize = 2 * 1024 * 1024;
/// Maximum size of a hook's answer, in bytes.
pub const HOOK_ANSWER_MAX_BYTES: usize = 64 * 1024;
/// Default number of attempts that the test makes at once, with one key and with several.
pub const HOOK_TEST_AT_ONCE_COUNT: usize = 3;
/// Maximum number of points at which the test cuts the attempts at one call short.
pub const HOOK_TEST_CUTS_MAX_COUNT: u32 = 8;
/// Default timeout of an attempt in the hook author's test, in milliseconds. The test provisions something small.
pub const HOOK_TEST_TIMEOUT_MS: u64 = 30_000;
/// Number of attempts after which the test reports a call as failing.
pub const HOOK_TEST_TRIES_COUNT: u32 = 3;

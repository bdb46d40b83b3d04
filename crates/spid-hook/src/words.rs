//! Enums whose values have one word each, in files, logs and JSON.

/// Defines an enum with a word for each value, and its `ALL`, `as_str`, `from_word` and `Display`.
///
/// The words are written out, because they are a contract: a renamed variant must not change them.
#[doc(hidden)]
#[macro_export]
macro_rules! words {
    (
        $(#[$attribute:meta])*
        $public:vis enum $name:ident { $($(#[$note:meta])* $variant:ident = $word:literal,)+ }
    ) => {
        $(#[$attribute])*
        $public enum $name { $($(#[$note])* $variant,)+ }

        #[allow(dead_code, reason = "a private enum may need only one direction")]
        impl $name {
            /// All values. Where a value is stored, its index here is the stored number.
            $public const ALL: [$name; [$($word),+].len()] = [$($name::$variant),+];

            /// Word for the value in files, logs and `--json`.
            $public const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word),+ }
            }

            /// Returns the value with this word.
            $public fn from_word(word: &str) -> Option<$name> {
                $name::ALL.into_iter().find(|value| value.as_str() == word)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

//! Enums whose values have one word each, in files, logs and JSON.

/// Defines `ALL`, `as_str`, `from_word` and `Display` of an enum.
///
/// The words are written out, because they are a contract: a renamed variant must not change them.
#[doc(hidden)]
#[macro_export]
macro_rules! words {
    ($name:ident: $($variant:ident => $word:literal),+ $(,)?) => {
        impl $name {
            /// All values. Where a value is stored, its index here is the stored number.
            pub const ALL: [$name; [$($word),+].len()] = [$($name::$variant),+];

            /// Word for the value in files, logs and `--json`.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word),+ }
            }

            /// Returns the value with this word.
            pub fn from_word(word: &str) -> Option<$name> {
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

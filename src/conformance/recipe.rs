//! The ways receivers make the token: the documented one, and the wrong ones seen in the wild.
//!
//! Each is written as the pairs that, signed as documented, give the token the receiver makes.

use crate::query::{self, Pair};

/// How a receiver makes its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recipe {
    /// Decoded values, sorted by name (help.aliyun.com/document_detail/147280.html).
    Documented,
    /// Sorted by value.
    ByValue,
    /// In the order in which they came.
    AsSent,
    /// Values as they are encoded in the URL.
    Encoded,
}

impl Recipe {
    /// The wrong ones.
    pub(super) const WRONG: [Recipe; 3] = [Recipe::ByValue, Recipe::AsSent, Recipe::Encoded];

    /// What is signed in the place of `pairs`, which stand in the order in which they are sent; `plus` says
    /// whether a space is sent as `+`.
    pub(super) fn pairs(self, pairs: &[Pair], plus: bool) -> Vec<Pair> {
        match self {
            Recipe::Documented => pairs.to_vec(),
            Recipe::ByValue => {
                let mut sorted = pairs.to_vec();
                sorted.sort_by(|one, other| one.1.cmp(&other.1));
                in_this_order(&sorted)
            }
            Recipe::AsSent => in_this_order(pairs),
            Recipe::Encoded => {
                pairs.iter().map(|(name, value)| (name.clone(), encoded(value, plus))).collect()
            }
        }
    }

    /// What the receiver does, behind "it seems to ".
    pub(super) fn seems_to(self) -> &'static str {
        match self {
            Recipe::Documented => "do as documented",
            Recipe::ByValue => "sort by the values, not by the names",
            Recipe::AsSent => "take the parameters in the order in which they come, unsorted",
            Recipe::Encoded => "sign the values as they are encoded in the URL, not decoded",
        }
    }
}

/// One pair, whose value swallows all the others: the text that is signed does not mark where a value ends.
fn in_this_order(pairs: &[Pair]) -> Vec<Pair> {
    let mut rest = pairs.iter();
    let Some((name, first)) = rest.next() else { return Vec::new() };
    let mut value = first.clone();
    for (name, more) in rest {
        value.push_str(&format!("&{name}={more}"));
    }
    vec![(name.clone(), value)]
}

/// A text as it stands in a query.
fn encoded(text: &str, plus: bool) -> String {
    let encoded = query::encode(&[(String::new(), text.to_owned())]);
    let encoded = encoded.trim_start_matches('=');
    if plus { encoded.to_owned() } else { encoded.replace('+', "%20") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::Parts;

    #[test]
    fn every_recipe_signs_what_it_says() {
        let pairs: Vec<Pair> =
            [("b", "1 2"), ("a", "x")].map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let base = |recipe: Recipe| Parts::Pairs(recipe.pairs(&pairs, false)).base();
        assert_eq!(base(Recipe::Documented), "a=x&b=1 2&key=<key>");
        assert_eq!(base(Recipe::ByValue), "b=1 2&a=x&key=<key>");
        assert_eq!(base(Recipe::AsSent), "b=1 2&a=x&key=<key>");
        assert_eq!(base(Recipe::Encoded), "a=x&b=1%202&key=<key>");
    }
}

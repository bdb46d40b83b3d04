//! A judgement as a document.

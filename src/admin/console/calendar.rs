//! Calendar of expiries: the number of instances for each day of a month, with links to them.

use jiff::civil::{Date, Weekday};
use jiff::tz::TimeZone;
use jiff::{Span, ToSpan};
use maud::{Markup, html};

use super::super::target::{Link, Target};
use super::super::{Admin, Fault};
use super::parts::{button, nothing};
use super::{NavigationEntry, Page, PageContext, Paged};

const WEEK: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

pub(super) async fn page(admin: &Admin, context: &PageContext, target: &Target) -> Paged {
    target.only(&["month", "done"])?;
    let today = context.now.to_zoned(TimeZone::UTC).date();
    let first = match target.get("month") {
        Some(text) => format!("{text}-01").parse::<Date>().map_err(|_| wrong())?,
        None => today.first_of_month(),
    };
    let end = moved(first, 1.month())?;
    let (from, to) = (number(first)?, number(end)?);
    let days = admin.read(move |reader| Ok(reader.expiries(from, to)?)).await?;
    let mut counts: Vec<(Date, u64)> = Vec::new();
    for number in from..to {
        let count = days.iter().find(|(day, _)| *day == number).map_or(0, |(_, count)| *count);
        counts.push((first.saturating_add((number - from).days()), count));
    }
    let body = html! {
        section class="card" {
            (months(first, moved(first, (-1).month()).ok(), end))
            (month(&counts, today))
            @if days.is_empty() { (nothing("No term ends in this month.")) }
        }
    };
    Ok(Page { title: "Expiry".to_owned(), place: NavigationEntry::Expiry, body })
}

fn wrong() -> Fault {
    Fault::new(400, "`month` must be a month, like 2027-01")
}

fn moved(date: Date, by: Span) -> Result<Date, Fault> {
    date.checked_add(by).map_err(|_| wrong())
}

/// Number of a day, counted from 1970-01-01.
fn number(date: Date) -> Result<i64, Fault> {
    let start = date.to_zoned(TimeZone::UTC).map_err(|_| wrong())?;
    Ok(start.timestamp().as_second().div_euclid(24 * 60 * 60))
}

fn months(first: Date, before: Option<Date>, after: Date) -> Markup {
    html! {
        nav class="months" aria-label="Months" {
            @if let Some(before) = before { (button(&of_month(before), "Earlier")) }
            h2 { (first.strftime("%B %Y")) }
            (button(&of_month(after), "Later"))
        }
    }
}

fn of_month(date: Date) -> Link {
    Link::to("/console/expiry").with("month", date.strftime("%Y-%m"))
}

fn month(days: &[(Date, u64)], today: Date) -> Markup {
    let most = days.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
    // Empty cells before the first day, because a week begins on Monday.
    let skipped = days.first().map_or(0, |(first, _)| first.weekday().to_monday_zero_offset());
    html! {
        ol class="month" aria-label="Days of the month" {
            @for word in WEEK { li class="weekday" aria-hidden="true" { (word) } }
            @for _ in 0..skipped { li class="blank" aria-hidden="true" {} }
            @for (date, count) in days { (day(*date, *count, most, *date == today)) }
        }
    }
}

fn day(date: Date, count: u64, most: u64, is_today: bool) -> Markup {
    // Four shades, relative to the busiest day of the month.
    let weight = match (count, count * 4 / most) {
        (0, _) => "0",
        (_, 0 | 1) => "1",
        (_, 2 | 3) => "2",
        _ => "3",
    };
    let class = match (is_today, matches!(date.weekday(), Weekday::Saturday | Weekday::Sunday)) {
        (true, _) => "day today",
        (false, true) => "day weekend",
        (false, false) => "day",
    };
    html! {
        li class=(class) data-weight=(weight) {
            time datetime=(date) { (date.day()) }
            @if count > 0 {
                a href=(Link::to("/console/instances").with("expires", date)) { (count) }
            }
        }
    }
}

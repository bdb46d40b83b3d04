//! Calendar of expiries: the number of instances for each day of a month, with links to them.

use jiff::civil::{Date, Weekday};
use jiff::tz::TimeZone;
use jiff::{Span, ToSpan};

use super::super::html::Html;
use super::super::target::{Link, Target};
use super::super::{Admin, Fault};
use super::parts::nothing;
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
    let counts: Vec<(Date, u64)> = (0..)
        .map(|ahead: i64| (from + ahead, first.saturating_add(ahead.days())))
        .take_while(|(day, _)| *day < to)
        .map(|(day, date)| (date, days.iter().find(|(of, _)| *of == day).map_or(0, |(_, count)| *count)))
        .collect();
    let mut body = Html::default();
    body.element("section", &[("class", "card")], |html| {
        months(html, first, moved(first, (-1).month()).ok(), Some(end));
        month(html, &counts, today);
        if days.is_empty() {
            nothing(html, "No term ends in this month.");
        }
    });
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

fn months(html: &mut Html, first: Date, before: Option<Date>, after: Option<Date>) {
    let to = |date: Date| Link::to("/console/expiry").with("month", date.strftime("%Y-%m"));
    html.element("nav", &[("class", "months"), ("aria-label", "Months")], |html| {
        if let Some(before) = before {
            html.link("button", &to(before), "Earlier");
        }
        html.leaf("h2", "", &first.strftime("%B %Y").to_string());
        if let Some(after) = after {
            html.link("button", &to(after), "Later");
        }
    });
}

fn month(html: &mut Html, days: &[(Date, u64)], today: Date) {
    let most = days.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
    // Empty cells before the first day, because a week begins on Monday.
    let skipped = days.first().map_or(0, |(first, _)| first.weekday().to_monday_zero_offset());
    html.element("ol", &[("class", "month"), ("aria-label", "Days of the month")], |html| {
        for word in WEEK {
            html.element("li", &[("class", "weekday"), ("aria-hidden", "true")], |html| html.text(word));
        }
        for _ in 0..skipped {
            html.element("li", &[("class", "blank"), ("aria-hidden", "true")], |_| {});
        }
        for (date, count) in days {
            day(html, *date, *count, most, *date == today);
        }
    });
}

fn day(html: &mut Html, date: Date, count: u64, most: u64, is_today: bool) {
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
    html.element("li", &[("class", class), ("data-weight", weight)], |html| {
        html.element("time", &[("datetime", &date.to_string())], |html| html.text(&date.day().to_string()));
        if count > 0 {
            let link = Link::to("/console/instances").with("expires", date);
            html.link("", &link, &count.to_string());
        }
    });
}

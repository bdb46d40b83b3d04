//! Facts about the machine, and the resources used by a process.

use std::fs::read_to_string;

/// Clock ticks per second, the same on every Linux.
const TICKS_PER_S: f64 = 100.0;

/// Returns the processor time used by a process, in seconds.
pub(crate) fn processor_s(process: u32) -> f64 {
    let stat = read_to_string(format!("/proc/{process}/stat")).unwrap();
    // The process name is in parentheses and may contain spaces.
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
    let ticks = |index: usize| fields[index].parse::<f64>().unwrap();
    (ticks(11) + ticks(12)) / TICKS_PER_S
}

/// Returns the resident memory of a process, in megabytes, mapped parts of its file included.
pub(crate) fn memory_mb(process: u32) -> f64 {
    of_status(process, "VmRSS:")
}

/// Returns the anonymous resident memory of a process, in megabytes: the part that is not its file.
pub(crate) fn own_memory_mb(process: u32) -> f64 {
    of_status(process, "RssAnon:")
}

fn of_status(process: u32, name: &str) -> f64 {
    let status = read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

/// Returns a description of the machine, in one line.
pub(crate) fn described() -> String {
    let info = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("an unknown processor");
    let model = model.trim_start_matches(['\t', ' ', ':']);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let memory = read_to_string("/proc/meminfo").unwrap_or_default();
    let total = memory.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).unwrap_or(0.0);
    format!("{model}, {cores} cores, {:.0} GB, Linux {}", total / 1024.0 / 1024.0, kernel.trim())
}

/// Returns the median time of a durable write of one page, in milliseconds.
pub(crate) fn sync_ms(folder: &std::path::Path) -> f64 {
    use std::io::Write;
    let mut file = std::fs::File::create(folder.join("sync-probe")).unwrap();
    let mut took: Vec<f64> = (0..200)
        .map(|_| {
            let begun = std::time::Instant::now();
            file.write_all(&[7; 4096]).unwrap();
            file.sync_data().unwrap();
            begun.elapsed().as_secs_f64() * 1000.0
        })
        .collect();
    took.sort_by(f64::total_cmp);
    took[took.len() / 2]
}

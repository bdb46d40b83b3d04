//! Watched files, and their state after a power failure.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

const PAGE: u64 = 4096;

/// File of a descriptor.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Watched {
    File(String),
    Folder,
}

/// Paths of the watched files.
pub(crate) struct Place {
    folder: PathBuf,
    prefix: String,
}

/// All other state, behind one lock, which is held during every change to a watched file.
pub(crate) struct Disk {
    place: &'static Place,
    open: HashMap<i32, Watched>,
    synced: Option<Synced>,
}

/// Watched descriptors. They are checked before the lock is taken. Between `fork` and `exec` the lock may be held
/// forever in a child, and the child must pass.
static WATCHED: [AtomicBool; 4096] = [const { AtomicBool::new(false) }; 4096];

pub(crate) fn is_watched(descriptor: i32) -> bool {
    flag(descriptor).is_some_and(|flag| flag.load(Ordering::SeqCst))
}

fn flag(descriptor: i32) -> Option<&'static AtomicBool> {
    WATCHED.get(usize::try_from(descriptor).ok()?)
}

/// `None` if no file is watched.
pub(crate) fn place() -> Option<&'static Place> {
    static PLACE: OnceLock<Option<Place>> = OnceLock::new();
    let place = PLACE.get_or_init(|| {
        let path = PathBuf::from(std::env::var_os("FAULTFS_PATH")?);
        let prefix = path.file_name()?.to_str()?.to_owned();
        Some(Place { folder: path.parent()?.to_owned(), prefix })
    });
    place.as_ref()
}

impl Place {
    /// Meaning of `path`. Only absolute paths count, because the process under test uses them.
    pub(crate) fn watched(&self, path: &Path) -> Option<Watched> {
        if path == self.folder {
            return Some(Watched::Folder);
        }
        let name = path.file_name()?.to_str()?;
        (path.parent()? == self.folder && name.starts_with(&self.prefix))
            .then(|| Watched::File(name.to_owned()))
    }
}

/// State after a power failure, in `folder`. `pending/` below it has the synced contents of files whose names are not
/// synced yet.
struct Synced {
    folder: PathBuf,
    dirty: HashMap<String, BTreeSet<u64>>,
}

/// The locked disk. `None` if no file is watched.
pub(crate) fn disk() -> Option<MutexGuard<'static, Disk>> {
    static DISK: OnceLock<Option<Mutex<Disk>>> = OnceLock::new();
    let disk = DISK.get_or_init(|| Some(Mutex::new(Disk::new(place()?)))).as_ref()?;
    Some(disk.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Disk {
    fn new(place: &'static Place) -> Disk {
        let synced = std::env::var_os("FAULTFS_SYNCED").map(|folder| Synced::new(folder.into(), place));
        Disk { place, open: HashMap::new(), synced }
    }

    pub(crate) fn on(&self, descriptor: i32) -> Option<Watched> {
        self.open.get(&descriptor).cloned()
    }

    pub(crate) fn opened(&mut self, descriptor: i32, on: Watched, is_new: bool, emptied: bool) {
        if let (Watched::File(name), Some(synced)) = (&on, &mut self.synced) {
            if is_new {
                synced.forget(name);
            }
            if is_new || emptied {
                synced.touch(name, 0, 1);
            }
        }
        if let Some(flag) = flag(descriptor) {
            flag.store(true, Ordering::SeqCst);
            self.open.insert(descriptor, on);
        }
    }

    pub(crate) fn closed(&mut self, descriptor: i32) {
        self.open.remove(&descriptor);
        if let Some(flag) = flag(descriptor) {
            flag.store(false, Ordering::SeqCst);
        }
    }

    pub(crate) fn written(&mut self, name: &str, from: u64, length: u64) {
        if let Some(synced) = &mut self.synced {
            synced.touch(name, from, length);
        }
    }

    pub(crate) fn removed(&mut self, name: &str) {
        if let Some(synced) = &mut self.synced {
            synced.forget(name);
        }
    }

    pub(crate) fn renamed(&mut self, from: &str, to: &str) {
        if let Some(synced) = &mut self.synced {
            let dirty = synced.dirty.remove(from).unwrap_or_default();
            synced.dirty.insert(to.to_owned(), dirty);
            let _ = fs::remove_file(synced.pending().join(to));
            let _ = fs::rename(synced.pending().join(from), synced.pending().join(to));
        }
    }

    pub(crate) fn linked(&mut self, from: &str, to: &str) {
        if let Some(synced) = &mut self.synced {
            let dirty = synced.dirty.get(from).cloned().unwrap_or_default();
            synced.dirty.insert(to.to_owned(), dirty);
            let _ = fs::copy(synced.pending().join(from), synced.pending().join(to));
        }
    }

    /// The sync failed: its data is lost, and counts as written.
    pub(crate) fn lost(&mut self, on: &Watched) {
        if let (Watched::File(name), Some(synced)) = (on, &mut self.synced) {
            synced.dirty.remove(name);
        }
    }

    pub(crate) fn sync(&mut self, on: &Watched) -> io::Result<()> {
        let Some(synced) = &mut self.synced else { return Ok(()) };
        match on {
            Watched::File(name) => synced.sync_file(&self.place.folder, name),
            Watched::Folder => synced.sync_folder(self.place),
        }
    }
}

fn names(folder: &Path, prefix: &str) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        if let Ok(name) = entry?.file_name().into_string()
            && name.starts_with(prefix)
            && !name.ends_with("-shm")
        {
            names.push(name);
        }
    }
    Ok(names)
}

impl Synced {
    /// Data of an earlier process may still be in flight.
    fn new(folder: PathBuf, place: &Place) -> Synced {
        let mut synced = Synced { folder, dirty: HashMap::new() };
        let _ = fs::create_dir_all(synced.pending());
        for name in names(&place.folder, &place.prefix).unwrap_or_default() {
            let length = fs::metadata(place.folder.join(&name)).map_or(0, |metadata| metadata.len());
            synced.touch(&name, 0, length);
        }
        synced
    }

    fn pending(&self) -> PathBuf {
        self.folder.join("pending")
    }

    fn touch(&mut self, name: &str, from: u64, length: u64) {
        if length > 0 && !name.ends_with("-shm") {
            self.dirty.entry(name.to_owned()).or_default().extend(from / PAGE..=(from + length - 1) / PAGE);
        }
    }

    fn forget(&mut self, name: &str) {
        self.dirty.remove(name);
        let _ = fs::remove_file(self.pending().join(name));
    }

    fn sync_file(&mut self, real: &Path, name: &str) -> io::Result<()> {
        let Some(dirty) = self.dirty.remove(name) else { return Ok(()) };
        let from = File::open(real.join(name))?;
        let durable = self.folder.join(name);
        let to = if durable.exists() { durable } else { self.pending().join(name) };
        let to = OpenOptions::new().write(true).create(true).truncate(false).open(to)?;
        let length = from.metadata()?.len();
        let mut page = [0u8; PAGE as usize];
        for start in dirty.into_iter().map(|number| number * PAGE).filter(|start| *start < length) {
            let wanted = PAGE.min(length - start) as usize;
            from.read_exact_at(&mut page[..wanted], start)?;
            to.write_all_at(&page[..wanted], start)?;
        }
        to.set_len(length)
    }

    /// Makes every name durable, with the synced content of its file.
    fn sync_folder(&mut self, place: &Place) -> io::Result<()> {
        let real = names(&place.folder, &place.prefix)?;
        for name in &real {
            let (pending, durable) = (self.pending().join(name), self.folder.join(name));
            if pending.exists() {
                fs::rename(pending, durable)?;
            } else if !durable.exists() {
                File::create(durable)?;
            }
        }
        for gone in names(&self.folder, &place.prefix)?.iter().filter(|name| !real.contains(name)) {
            fs::remove_file(self.folder.join(gone))?;
        }
        Ok(())
    }
}

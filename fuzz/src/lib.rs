//! What the fuzz targets share. See `README.md` for how to run them.

pub mod readers;

/// A folder in memory for the files that are read.
pub struct Folder(tempfile::TempDir);

impl Folder {
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Folder(folder.expect("a folder for the files"))
    }

    pub fn path(&self) -> &std::path::Path {
        self.0.path()
    }
}

/// Panics that a reader catches are none; those that it does not still end the process.
pub fn begin() {
    std::panic::set_hook(Box::new(|_| {}));
}

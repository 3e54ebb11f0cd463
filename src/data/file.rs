//! Files in and out: bytes that are decompressed as they are read, and files that appear whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use flate2::bufread::{MultiGzDecoder, ZlibDecoder};

use super::fault::{self, Change};
use crate::{Error, Result};

/// Deflate makes at most 1032 bytes of one, so no file can hold more than this many times its size.
const LARGEST_RATIO: u64 = 1032;

type Reader = Box<dyn BufRead + Send>;

/// A file being read, decompressed on the way where it is compressed.
pub struct Input {
    reader: Reader,
    /// The most bytes that can come out of it.
    pub most: u64,
}

impl Input {
    /// Opens `path` for reading; gzip, told by its first bytes, is decompressed on the way.
    ///
    /// # Errors
    /// If it cannot be opened or is not a regular file.
    pub fn open(path: &Path) -> Result<Self> {
        let mut plain = Self::plain(path)?;
        Ok(match plain.reader.fill_buf().map_err(Error::io(path))?.starts_with(&[0x1f, 0x8b]) {
            true => plain.decompressed(|reader| Box::new(BufReader::new(MultiGzDecoder::new(reader)))),
            false => plain,
        })
    }

    /// Opens `path` for reading, byte for byte.
    ///
    /// # Errors
    /// If it cannot be opened or is not a regular file.
    pub fn plain(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path))?;
        let metadata = file.metadata().map_err(Error::io(path))?;
        if !metadata.is_file() {
            return Err(Error::file(path, "is not a regular file"));
        }
        Ok(Input { reader: Box::new(BufReader::with_capacity(1 << 16, file)), most: metadata.len() })
    }

    /// What is left of the file, decompressed by zlib.
    pub fn inflated(self) -> Self {
        self.decompressed(|reader| Box::new(BufReader::new(ZlibDecoder::new(reader))))
    }

    fn decompressed(self, decoder: impl FnOnce(Reader) -> Reader) -> Self {
        Input { reader: decoder(self.reader), most: self.most.saturating_mul(LARGEST_RATIO) }
    }

    /// Fills as much of `buffer` as the file has bytes for, and says how many those were.
    pub fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.reader.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    /// Reads and drops `count` bytes, or as many as there are, and says how many those were.
    pub fn skip(&mut self, count: u64) -> io::Result<u64> {
        io::copy(&mut (&mut self.reader).take(count), &mut io::sink())
    }
}

/// A file being written; see [`super::fault`].
pub struct Output {
    file: File,
    path: PathBuf,
}

impl Output {
    fn open(path: &Path, options: &OpenOptions) -> io::Result<Self> {
        fault::check(Change::Create, path)?;
        Ok(Output { file: options.open(path)?, path: path.to_path_buf() })
    }

    fn sync(&self) -> io::Result<()> {
        fault::check(Change::Sync, &self.path)?;
        self.file.sync_all()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(fault) = fault::before(Change::Write, &self.path) {
            self.file.write_all(&bytes[..bytes.len() / 2])?;
            return Err(fault.strike());
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// What the name of a file that is not complete ends with.
pub const PARTIAL: &str = ".partial";

/// Files that this process has begun to write.
static WRITTEN: AtomicUsize = AtomicUsize::new(0);

/// Writes a file so that `path` never holds half of it: `fill` writes to a temporary name in the
/// same folder (made if absent), which is synced and then renamed; then the folder is synced.
///
/// # Errors
/// Whatever `fill` or the operating system says; the temporary file is then gone.
pub fn write_atomically(path: &Path, fill: impl FnOnce(&mut BufWriter<Output>) -> io::Result<()>) -> Result<()> {
    let folder = folder_of(path);
    let name = path.file_name().ok_or_else(|| Error::file(path, "is not a name for a file"))?;
    create_folder(folder)?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    // Two threads may write the same file: each its own, and one of them stays.
    let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
    temporary.push(format!(".{}-{number}{PARTIAL}", std::process::id()));
    let temporary: PathBuf = folder.join(temporary);

    let write = || -> io::Result<()> {
        let output = Output::open(&temporary, OpenOptions::new().write(true).create(true).truncate(true))?;
        let mut writer = BufWriter::with_capacity(1 << 16, output);
        // Dropped without a flush where it failed: what is buffered must not be tried again.
        let filled = fill(&mut writer).and_then(|()| writer.flush()).and_then(|()| writer.get_ref().sync());
        drop(writer.into_parts());
        filled?;
        fault::check(Change::Rename, path)?;
        std::fs::rename(&temporary, path)?;
        sync_folder(folder)
    };
    write().map_err(|source| {
        let _ = std::fs::remove_file(&temporary);
        Error::Io { path: path.to_path_buf(), source }
    })
}

/// Adds text to the end of a file (made if absent), in one piece or not at all, and syncs it.
///
/// # Errors
/// Whatever the operating system says; the file is then as it was.
pub fn append(path: &Path, text: &str) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut output = Output::open(path, OpenOptions::new().create(true).append(true))?;
        let before = output.file.metadata()?.len();
        let written = output.write_all(text.as_bytes()).and_then(|()| output.sync());
        if written.is_err() {
            output.file.set_len(before)?;
        }
        written
    };
    write().map_err(Error::io(path))
}

/// Makes a folder, and those that it lies in, where they are absent.
///
/// # Errors
/// If it cannot be made, or a file has its name.
pub fn create_folder(folder: &Path) -> Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let make = || -> io::Result<()> {
        fault::check(Change::Create, folder)?;
        std::fs::create_dir_all(folder)?;
        sync_folder(folder_of(folder))
    };
    make().map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
            Error::file(folder, "a folder is needed here, and there is a file: choose another name")
        }
        _ => Error::Io { path: folder.to_path_buf(), source },
    })
}

/// Removes a file.
///
/// # Errors
/// Whatever the operating system says.
pub fn remove(path: &Path) -> Result<()> {
    fault::check(Change::Remove, path).and_then(|()| std::fs::remove_file(path)).map_err(Error::io(path))
}

/// Removes the files of a folder, if there is one, whose names end so: with [`PARTIAL`], what a process that was killed
/// while it wrote has left. Nobody else may be writing there.
///
/// # Errors
/// Whatever the operating system says.
pub fn remove_all(folder: &Path, ending: &str) -> Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(Error::io(folder))?,
    };
    for entry in entries {
        let path = entry.map_err(Error::io(folder))?.path();
        if ends_with(&path, ending) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Makes sure that names in a folder outlive a power failure.
fn sync_folder(folder: &Path) -> io::Result<()> {
    fault::check(Change::Sync, folder)?;
    // Only Unix opens folders.
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// The folder that a path lies in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether the file's name ends with `ending` (given in lower case), whatever the name's case.
pub(crate) fn ends_with(path: &Path, ending: &str) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().to_ascii_lowercase().ends_with(ending))
}

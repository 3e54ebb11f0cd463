//! Files in and out: bytes that are decompressed as they are read, and files that appear whole or not at all.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use flate2::bufread::{MultiGzDecoder, ZlibDecoder};

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

/// Writes a file so that `path` never holds half of it: `fill` writes to a temporary name in the
/// same folder (made if absent), which is synced and then renamed.
///
/// # Errors
/// Whatever `fill` or the operating system says; the temporary file is then gone.
pub fn write_atomically(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let name = path.file_name().ok_or_else(|| Error::file(path, "is not a name for a file"))?;
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.partial", std::process::id()));
    let temporary: PathBuf = folder.join(temporary);

    let write = || -> io::Result<()> {
        let mut writer = BufWriter::with_capacity(1 << 16, File::create(&temporary)?);
        fill(&mut writer)?;
        writer.flush()?;
        writer.get_ref().sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|source| {
        let _ = std::fs::remove_file(&temporary);
        Error::Io { path: path.to_path_buf(), source }
    })
}

/// Whether the file's name ends with `ending` (given in lower case), whatever the name's case.
pub(crate) fn ends_with(path: &Path, ending: &str) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().to_ascii_lowercase().ends_with(ending))
}

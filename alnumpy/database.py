"""The file behind a gallery: SQLite, opened with care, locked against a second writer, checked and migrated."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from threading import RLock
from typing import Any

from .errors import GalleryError

APPLICATION_ID = 0x616C6E70  # "alnp": marks the file as ours in SQLite's header
# Script i leads from version i to version i + 1, which SQLite keeps as user_version. A published script never changes.
# Readers cannot migrate and read older versions as they are, so scripts add and take nothing away.
# contents: a row for each distinct content of a file, with its SHA-256, its size in pixels when upright, and the
# embedding as packed.encode() makes it.
# pictures: a row for each file. The path is as ``places`` makes it, in the file system's bytes, which need not be text;
# size and mtime_ns are -1 if the file is to be read again in any case; hash is that of its content. If error says why
# the file has no embedding, hash is NULL, or the earlier one if the file could not be read: perhaps it has not changed.
# contents.taken: the date in the EXIF data, ISO 8601 in local time, "" if there is none; NULL
# if version 2 made the row and no file with this content has been read since.
# ctime_ns is NULL if version 2 recorded the file; tried names the decoders that failed, with versions and limits.
# vanished is 1 if the file was missing when its folder was last indexed, and 2 if a rule left it out.
# disks: the disk that each folder with pictures was on.
# kinds: the kinds of files whose names do not show it, or that are not read, by their first bytes; valid for a size and
# time.
# whitening: one row, float32, if the settings say that embeddings are reduced.
# sketches, basis (one row, float32): what ``sketch`` makes of the contents, by blocks of rowids; unsketched: the rowids
# of contents that were added, changed or removed since. pictures_not_found: the pictures that a search leaves out.
MIGRATIONS = (
    f"""
    PRAGMA application_id = {APPLICATION_ID};
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE contents (
        hash BLOB NOT NULL UNIQUE,
        width INTEGER NOT NULL,
        height INTEGER NOT NULL,
        embedding BLOB NOT NULL
    );
    CREATE TABLE pictures (
        path BLOB PRIMARY KEY,
        size INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        hash BLOB,
        error TEXT,
        added TEXT NOT NULL,
        vanished INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX pictures_by_hash ON pictures (hash);
    """,
    "CREATE TABLE whitening (mean BLOB NOT NULL, projection BLOB NOT NULL)",
    """
    CREATE TABLE basis (mean BLOB NOT NULL, axes BLOB NOT NULL, contents INTEGER NOT NULL);
    CREATE TABLE sketches (block INTEGER PRIMARY KEY, numbers BLOB NOT NULL, codes BLOB NOT NULL);
    CREATE TABLE unsketched (content INTEGER PRIMARY KEY);
    INSERT INTO unsketched SELECT rowid FROM contents;
    CREATE TRIGGER contents_added AFTER INSERT ON contents BEGIN
        INSERT OR IGNORE INTO unsketched VALUES (new.rowid);
    END;
    CREATE TRIGGER contents_changed AFTER UPDATE ON contents BEGIN
        INSERT OR IGNORE INTO unsketched VALUES (old.rowid);
        INSERT OR IGNORE INTO unsketched VALUES (new.rowid);
    END;
    CREATE TRIGGER contents_removed AFTER DELETE ON contents BEGIN
        INSERT OR IGNORE INTO unsketched VALUES (old.rowid);
    END;
    CREATE INDEX pictures_not_found ON pictures (hash) WHERE NOT (error IS NULL AND vanished = 0);
    """,
    """
    ALTER TABLE contents ADD COLUMN taken TEXT;
    DROP TRIGGER contents_changed;
    CREATE TRIGGER contents_changed AFTER UPDATE ON contents
    WHEN old.rowid <> new.rowid OR old.hash IS NOT new.hash OR old.embedding IS NOT new.embedding BEGIN
        INSERT OR IGNORE INTO unsketched VALUES (old.rowid);
        INSERT OR IGNORE INTO unsketched VALUES (new.rowid);
    END;
    """,
    """
    ALTER TABLE pictures ADD COLUMN ctime_ns INTEGER;
    ALTER TABLE pictures ADD COLUMN tried TEXT;
    CREATE TABLE disks (
        path BLOB PRIMARY KEY,
        mount BLOB NOT NULL,
        name TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE kinds (
        path BLOB PRIMARY KEY,
        size INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        kind TEXT NOT NULL
    ) WITHOUT ROWID;
    DELETE FROM meta WHERE key = 'max_pixels';
    """,
    "",  # from here on paths may be relative; programs that know only absolute paths must not open the file
)
PAGE_SIZE = 16384  # bytes: rows of a few kilobytes would leave a third of SQLite's own 4096 empty
LOCAL = "keep the gallery on a local disk, with --db; the pictures may stay there"
WAIT = 30.0  # seconds to wait for another process's transaction


class Database:
    """One SQLite file, for any number of threads. Its errors are GalleryErrors, which name the file and the remedy.

    If it is writable, it is made where there is none, and brought up to date. Raises GalleryError if it is missing,
    foreign, damaged, of a newer version, or in use by another writer.
    """

    def __init__(self, path: str | os.PathLike[str], writable: bool, page_size: int = PAGE_SIZE):
        self.path = os.path.realpath(path)  # a link to the file must not get a lock of its own
        self.writable = writable
        self.page_size = page_size  # the page size of a new file
        self.version = 0  # the version of its tables, which can be an older one for a reader
        self.immutable = False  # whether changes by others are not seen, for example on read-only media
        self.lock = RLock()  # held by the thread that uses the connection, throughout a transaction
        self._file_lock: sqlite3.Connection | None = None
        self._connection: sqlite3.Connection | None = None
        self._logged = False  # whether SQLite keeps a write-ahead log beside the file
        try:
            with self._naming():
                self._open()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the file as soon as no thread is using it. It cannot be used afterwards."""
        with self.lock:
            if self._connection is not None:
                if self._logged:  # back to one plain file, which read-only media can hold; readers can prevent it
                    with suppress(sqlite3.Error):
                        self._connection.execute("PRAGMA busy_timeout = 1000")
                        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                        self._connection.execute("PRAGMA journal_mode = DELETE").fetchall()
                with suppress(sqlite3.Error):
                    self._connection.close()
                self._connection = None
            # Keep the lock file: a process that has it open would otherwise lock a deleted file.
            if self._file_lock is not None:
                self._file_lock.close()
                self._file_lock = None

    def start_log(self) -> None:
        """From now on readers are not blocked by a writer, and what is stored survives a power cut."""
        self.run("PRAGMA synchronous = FULL")
        with suppress(GalleryError):  # some file systems cannot do this; readers then wait
            self._logged = self.one("PRAGMA journal_mode = WAL") == "wal"

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows that a SELECT finds."""
        with self.cursor(sql, values) as rows:
            return list(rows)

    @contextmanager
    def cursor(self, sql: str, values: Sequence[Any] = ()) -> Iterator[Iterator[tuple[Any, ...]]]:
        """The rows that a SELECT finds, read one by one inside the block, while other threads wait."""
        with self.lock, self._naming(), closing(self._db.execute(sql, values)) as rows:
            yield self._named(rows)

    def _named(self, rows: Iterator[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        """The same rows; an error in reading names this file also while another database is written with them."""
        with self._naming():
            yield from rows

    def one(self, sql: str) -> Any:
        """The only value that a SELECT or PRAGMA finds."""
        ((value,),) = self.rows(sql)
        return value

    def run(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Changes the database. Returns the number of rows."""
        with self.lock, self._naming():
            return self._db.execute(sql, values).rowcount

    def run_each(self, sql: str, values: Iterable[Sequence[Any]]) -> int:
        """Changes the database once for each of ``values``. Returns the number of rows altogether."""
        with self.lock, self._naming():
            return self._db.executemany(sql, values).rowcount

    def meta(self) -> dict[str, str]:
        """The table ``meta``."""
        return dict(self.rows("SELECT key, value FROM meta"))

    def set_meta(self, key: str, value: str) -> None:
        """Records a value in the table ``meta``."""
        self.run("INSERT OR REPLACE INTO meta VALUES (?, ?)", [key, value])

    def take_over(self, other: Database) -> None:
        """Replaces everything by the content of another database of the same page size, in one transaction."""
        with self.lock, other.lock, self._naming():
            other._db.backup(self._db)

    def has_column(self, table: str, column: str) -> bool:
        """Whether a table has a column; files of older versions may lack it."""
        return any(row[1] == column for row in self.rows(f"PRAGMA table_info({table})"))

    def drop_unused_contents(self) -> None:
        """Removes embeddings that no longer belong to any file."""
        self.run("DELETE FROM contents WHERE NOT EXISTS (SELECT 1 FROM pictures WHERE pictures.hash = contents.hash)")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Stores all changes made inside if the block ends without an error, and none otherwise."""
        if not self.writable:
            raise GalleryError(f"{self.path}: opened to read; open it with mode 'a' to change it")
        with self.lock:
            try:
                self.run("BEGIN IMMEDIATE")
                yield
                self.run("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # the first error is the one to report
                    if self._connection is not None:
                        _roll_back(self._connection)
                raise

    @contextmanager
    def reading(self) -> Iterator[None]:
        """All reads inside see the database as at one moment, whatever is written meanwhile. Other threads wait."""
        with self.lock:
            self.run("BEGIN")
            try:
                yield
            finally:
                with suppress(sqlite3.Error):
                    if self._connection is not None:
                        _roll_back(self._connection)

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise ValueError("the gallery is closed")
        return self._connection

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:  # SQLite's message may quote damaged bytes
            text = str(error)
            if "locked" in text:
                text = (
                    "another alnumpy is writing to it; try again when it has ended. If none is, locks fail, as on "
                    f"many network shares; {LOCAL}"
                )
            elif "locking protocol" in text:
                text = f"the file system cannot lock it ({text}), as many network shares cannot; {LOCAL}"
            elif "full" in text:
                text = f"{text}; make room and run again: what was stored before is safe"
            elif "disk I/O" in text:
                text = f"{text}; a full or failing disk; what was stored before is safe, so mend it and run again"
            elif "readonly" in text and not self.writable:
                text = "a writer was stopped half way; to put that right, the file and its folder must be writable"
            elif "unable to open" in text:
                text = f"cannot be opened ({text}); check that its folder exists, and your rights to both"
            elif not isinstance(error, sqlite3.OperationalError):
                text = f"damaged, or not a database ({text}); restore it, or move it away and index again"
            raise GalleryError(f"{self.path}: {text}") from None

    def _open(self) -> None:
        if os.path.exists(self.path) and not os.path.isfile(self.path):
            raise GalleryError(f"{self.path}: not a file")
        if self.writable:
            # Keeps a second writer out: SQLite's lock on a file of its own, which always ends with the process.
            self._file_lock = _connect(self.path + "-lock", 0, "BEGIN IMMEDIATE")
            self._connect("rwc")
            self.run(f"PRAGMA page_size = {self.page_size}")
        elif os.path.exists(self.path):
            self._connect_to_read()
        else:
            raise GalleryError(f"{self.path}: no such gallery; make one with: alnumpy index FOLDER --db FILE")
        with self.reading():  # all reads must be of one moment: a writer may be making the tables
            self.version = version = self.one("PRAGMA user_version")
            application = self.one("PRAGMA application_id")
            schema = _schema(self._db)
        new = self.writable and (version, application, schema) == (0, 0, set())
        if application != APPLICATION_ID and not new:
            raise GalleryError(f"{self.path}: not an alnumpy gallery; make one with: alnumpy index FOLDER --db FILE")
        if version > len(MIGRATIONS):
            raise GalleryError(f"{self.path}: version {version}, this alnumpy reads {len(MIGRATIONS)}; update alnumpy")
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
            migrate(fresh, MIGRATIONS[:version])
            if schema != _schema(fresh):
                raise GalleryError(f"{self.path}: its tables are not those of an alnumpy gallery")
        if self.writable:
            migrate(self._db, MIGRATIONS)
            self.version = len(MIGRATIONS)

    def _connect(self, options: str) -> None:
        uri = f"{Path(self.path).as_uri()}?mode={options}"
        # SQLite opens the file only when something is read.
        self._connection = _connect(uri, WAIT, "PRAGMA trusted_schema = OFF", "SELECT * FROM sqlite_master LIMIT 1")

    def _connect_to_read(self) -> None:
        try:
            self._connect("ro")
        except sqlite3.OperationalError:
            # A writer that was killed may have left a change half done, or the file in a mode that needs two more
            # files beside it. SQLite repairs both if it may write.
            log = self.path + "-wal"
            if os.access(os.path.dirname(self.path), os.W_OK):
                self._connect("rw")
                self._db.close()
                self._connect("ro")
            elif os.path.exists(self.path + "-journal") or (os.path.exists(log) and os.path.getsize(log)):
                raise
            else:  # the file itself is complete
                self._connect("ro&immutable=1")
                self.immutable = True


def migrate(connection: sqlite3.Connection, scripts: Sequence[str]) -> None:
    """Runs the scripts that a database of an older version lacks, each in one transaction with its version number."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    for number, script in enumerate(scripts[version:], version + 1):
        try:
            connection.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT")
        except BaseException:
            _roll_back(connection)
            raise


def _connect(name: str, timeout: float, *statements: str) -> sqlite3.Connection:
    connection = sqlite3.connect(name, timeout=timeout, isolation_level=None, check_same_thread=False, uri=True)
    try:
        for statement in statements:
            connection.execute(statement).fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def _schema(connection: sqlite3.Connection) -> set[tuple[str, str, str]]:
    """All objects in the schema. A file from elsewhere might add triggers or views."""
    return set(connection.execute("SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"))


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:  # after a full disk SQLite has rolled back already
        connection.execute("ROLLBACK")

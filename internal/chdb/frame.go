package chdb

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/ClickHouse/ch-go/compress"
	"github.com/go-faster/city"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"golang.org/x/sys/unix"
)

// ClickHouse's own compression is a sequence of frames: 16 bytes of checksum
// (CityHash128 1.0.2) over what follows, one byte of method, 4 bytes of size
// (of the method byte, both sizes and the data), 4 bytes of size of the data
// when decompressed, the data.
const (
	frameChecksum = 16
	frameHeader   = 1 + 4 + 4

	methodNone = 0x02
	methodLZ4  = 0x82
	methodZSTD = 0x90
)

// onHeap is the size up to which the buffers of a frame are ordinary memory.
// A client may send its whole insert as one frame; such buffers are files, so
// that the system can write them out when memory is short.
const onHeap = 1 << 20

// frameReader reads the data of frames. It refuses frames of more than limit
// bytes, compressed or not.
type frameReader struct {
	src   io.Reader
	dir   string // where buffers above onHeap are kept
	limit int

	packed, data scratch
	rest         []byte // what of data.bytes is still to be read
}

func (r *frameReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// Close gives the buffers free.
func (r *frameReader) Close() error {
	r.rest = nil
	return errors.Join(r.packed.free(), r.data.free())
}

// next reads one frame. It returns io.EOF only where a frame could start.
func (r *frameReader) next() error {
	var head [frameChecksum + frameHeader]byte
	if n, err := io.ReadFull(r.src, head[:]); err != nil {
		if n == 0 && errors.Is(err, io.EOF) {
			return io.EOF
		}
		return frameError(err)
	}
	packedSize := int64(binary.LittleEndian.Uint32(head[frameChecksum+1:]))
	dataSize := int64(binary.LittleEndian.Uint32(head[frameChecksum+5:]))
	if packedSize < frameHeader {
		return errCannotDecompress.new("The body is not in ClickHouse's compressed framing: a frame of %d bytes", packedSize)
	}
	if packedSize > int64(r.limit) || dataSize > int64(r.limit) {
		return errQueryTooLarge.new("A compressed frame of %d bytes holding %d bytes is larger than the limit of %d bytes for a request body: send smaller batches", packedSize, dataSize, r.limit)
	}
	if err := r.packed.size(r.dir, int(packedSize)); err != nil {
		return err
	}
	packed := r.packed.bytes
	copy(packed, head[frameChecksum:])
	if _, err := io.ReadFull(r.src, packed[frameHeader:]); err != nil {
		return frameError(err)
	}
	sum := city.CH128(packed)
	if sum.Low != binary.LittleEndian.Uint64(head[:]) || sum.High != binary.LittleEndian.Uint64(head[8:]) {
		return errCannotDecompress.new("Checksum doesn't match: the compressed body is damaged, or is not in ClickHouse's framing")
	}
	if err := r.data.size(r.dir, int(dataSize)); err != nil {
		return err
	}
	n, err := decompress(packed[0], r.data.bytes, packed[frameHeader:])
	if err != nil {
		return errCannotDecompress.new("Cannot decompress: %v", err)
	}
	if n != len(r.data.bytes) {
		return errCannotDecompress.new("Cannot decompress: a frame holds %d bytes and claims %d", n, dataSize)
	}
	r.rest = r.data.bytes
	return nil
}

func frameError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errCannotReadAllData.new("The compressed body ends inside a frame")
	}
	return err
}

// decompress unpacks src into dst and returns how many bytes it holds.
func decompress(method byte, dst, src []byte) (int, error) {
	switch method {
	case methodNone:
		if len(src) != len(dst) {
			return len(src), nil
		}
		return copy(dst, src), nil
	case methodLZ4:
		return lz4.UncompressBlock(src, dst)
	case methodZSTD:
		decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(uint64(max(len(dst), 1))))
		if err != nil {
			return 0, err
		}
		defer decoder.Close()
		out, err := decoder.DecodeAll(src, dst[:0:len(dst)])
		if err == nil && len(out) <= len(dst) {
			copy(dst, out) // where it did not fit in place
		}
		return len(out), err
	default:
		return 0, fmt.Errorf("unknown compression method 0x%02x", method)
	}
}

// scratch is a buffer whose large sizes are backed by an unnamed file.
type scratch struct {
	bytes  []byte
	mapped []byte
}

// size makes the buffer n bytes long; what it held is lost.
func (s *scratch) size(dir string, n int) error {
	if n <= onHeap {
		if cap(s.bytes) < n || s.mapped != nil {
			if err := s.free(); err != nil {
				return err
			}
			s.bytes = make([]byte, n)
		}
		s.bytes = s.bytes[:n]
		return nil
	}
	if err := s.free(); err != nil {
		return err
	}
	f, err := tempFile(dir)
	if err != nil {
		return err
	}
	defer f.Close() // the mapping keeps the file
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(n)); err != nil {
		return fmt.Errorf("get %d bytes of disk in %s: %w", n, dir, err)
	}
	if s.mapped, err = unix.Mmap(int(f.Fd()), 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("map a buffer of %d bytes: %w", n, err)
	}
	s.bytes = s.mapped
	return nil
}

func (s *scratch) free() error {
	mapped := s.mapped
	s.bytes, s.mapped = nil, nil
	if mapped == nil {
		return nil
	}
	return unix.Munmap(mapped)
}

// tempFile makes a file that has no name to others and is gone when closed.
func tempFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "body-*")
	if err != nil {
		return nil, fmt.Errorf("make a temporary file: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, fmt.Errorf("make a temporary file: %w", err)
	}
	return f, nil
}

// frameWriter writes data as frames.
type frameWriter struct {
	dst     io.Writer
	packer  *compress.Writer
	pending []byte
}

// frameSize is how much data one written frame holds, as ClickHouse's own
// buffers do.
const frameSize = 1 << 20

func newFrameWriter(dst io.Writer, method compress.Method) *frameWriter {
	return &frameWriter{dst: dst, packer: compress.NewWriter(0, method)}
}

func (w *frameWriter) Write(p []byte) (int, error) {
	written := len(p)
	for len(p) > 0 {
		n := min(len(p), frameSize-len(w.pending))
		w.pending = append(w.pending, p[:n]...)
		p = p[n:]
		if len(w.pending) == frameSize {
			if err := w.Flush(); err != nil {
				return 0, err
			}
		}
	}
	return written, nil
}

// Flush writes what is pending as a frame.
func (w *frameWriter) Flush() error {
	if len(w.pending) == 0 {
		return nil
	}
	if err := w.packer.Compress(w.pending); err != nil {
		return fmt.Errorf("compress: %w", err)
	}
	w.pending = w.pending[:0]
	_, err := w.dst.Write(w.packer.Data)
	return err
}

// Close is Flush; the destination stays open.
func (w *frameWriter) Close() error { return w.Flush() }

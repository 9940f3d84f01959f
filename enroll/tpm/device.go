package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// DefaultPath is the TPM of a Linux machine, with the kernel's resource manager.
const DefaultPath = "/dev/tpmrm0"

// Device is a TPM 2.0. It is safe for concurrent use: operations wait for each other.
type Device struct {
	path string

	mu    sync.Mutex
	ek    *template   // of the endorsement key; nil if it was not chosen yet
	known Endorsement // zero if it was not read yet
}

// New returns the TPM at a path: a device such as /dev/tpmrm0, or the Unix domain socket of swtpm. It does not open the
// TPM.
func New(path string) *Device { return &Device{path: path} }

// Path returns the path of the TPM.
func (d *Device) Path() string { return d.path }

// Limits of a command.
const (
	commandTimeout = 2 * time.Minute // discrete TPMs need up to a minute to make an RSA key
	maxResponse    = 4096            // bytes
	headerSize     = 10              // tag (2), size (4), response code (4)
	maxTries       = 10              // of a command that the TPM is too busy for
	firstDelay     = 5 * time.Millisecond
)

// do opens the TPM, calls f, removes what f has loaded, and closes the TPM.
func (d *Device) do(f func(*session) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	c, err := open(d.path)
	if err != nil {
		return err
	}
	s := &session{tpm: c}
	err = f(s)
	return errors.Join(err, s.close(), c.Close())
}

// open opens a device or connects to a socket.
func open(path string) (*connection, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("there is no TPM at %s: check that the machine has a TPM 2.0, "+
			"and that it is enabled in the firmware", path)
	case err != nil:
		return nil, fmt.Errorf("open the TPM: %w", err)
	case info.Mode()&fs.ModeSocket != 0:
		dialer := net.Dialer{Timeout: commandTimeout}
		conn, err := dialer.DialContext(context.Background(), "unix", path)
		if err != nil {
			return nil, fmt.Errorf("connect to the TPM: %w", err)
		}
		return &connection{conn, conn.SetDeadline}, nil
	case info.Mode()&fs.ModeCharDevice == 0:
		return nil, fmt.Errorf("%s is neither a device nor a socket: set the path of a TPM, such as %s", path, DefaultPath)
	}
	// os.OpenFile would make the device non-blocking, and then read before the TPM has responded.
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("this user may not use the TPM %s: add the user to the device's group (on Debian, tss)", path)
	}
	if err != nil {
		return nil, fmt.Errorf("open the TPM %s: %w", path, err)
	}
	file := os.NewFile(uintptr(fd), path)
	return &connection{file, func(time.Time) error { return nil }}, nil
}

// connection is an open TPM. It implements [transport.TPM].
type connection struct {
	io.ReadWriteCloser
	setDeadline func(time.Time) error // does nothing for a device, whose driver has a timeout of its own
}

var _ transport.TPM = (*connection)(nil)

// Send sends a command and returns the response. It repeats a command that the TPM was too busy for.
func (c *connection) Send(command []byte) ([]byte, error) {
	if err := c.setDeadline(time.Now().Add(commandTimeout)); err != nil {
		return nil, fmt.Errorf("send a command to the TPM: %w", err)
	}
	for try, delay := 1, firstDelay; ; try, delay = try+1, 2*delay {
		if _, err := c.Write(command); err != nil {
			return nil, fmt.Errorf("send a command to the TPM: %w", err)
		}
		response, err := c.receive()
		if err != nil {
			return nil, fmt.Errorf("receive a response from the TPM: %w", err)
		}
		switch code := tpm2.TPMRC(binary.BigEndian.Uint32(response[6:])); {
		case try < maxTries && (code == tpm2.TPMRCRetry || code == tpm2.TPMRCYielded || code == tpm2.TPMRCTesting):
			time.Sleep(delay)
		default:
			return response, nil
		}
	}
}

// receive reads one response. A device returns it with one read, a socket in parts.
func (c *connection) receive() ([]byte, error) {
	response := make([]byte, maxResponse)
	n, err := io.ReadAtLeast(c, response, headerSize)
	if err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(response[2:])
	if size < headerSize || size > maxResponse {
		return nil, fmt.Errorf("it has %d bytes, and %d to %d are allowed", size, headerSize, maxResponse)
	}
	if n < int(size) {
		if _, err := io.ReadFull(c, response[n:size]); err != nil {
			return nil, err
		}
	}
	return response[:size], nil
}

// A session is an open TPM and the objects that are loaded into it.
type session struct {
	tpm    transport.TPM
	loaded []tpm2.TPMHandle
}

// An object is a loaded key. Its password is empty.
type object struct {
	tpm2.NamedHandle
	public []byte // TPMT_PUBLIC
}

func (o object) auth() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: o.Handle, Name: o.Name, Auth: tpm2.PasswordAuth(nil)}
}

// primary makes the primary key of a hierarchy from a template. The same template always gives the same key.
func (s *session) primary(hierarchy tpm2.TPMHandle, t tpm2.TPMTPublic) (object, error) {
	r, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: hierarchy, Auth: tpm2.PasswordAuth(nil)}, InPublic: tpm2.New2B(t),
	}.Execute(s.tpm)
	if err != nil {
		return object{}, explain("make a primary key", err)
	}
	s.loaded = append(s.loaded, r.ObjectHandle)
	return object{tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name}, r.OutPublic.Bytes()}, nil
}

// flush removes an object from the TPM, which has room for about three.
func (s *session) flush(o object) error {
	for i, handle := range s.loaded {
		if handle == o.Handle {
			s.loaded = append(s.loaded[:i], s.loaded[i+1:]...)
			break
		}
	}
	if _, err := (tpm2.FlushContext{FlushHandle: o.Handle}).Execute(s.tpm); err != nil {
		return explain("remove a key from the memory of the TPM", err)
	}
	return nil
}

// close removes all objects that are still loaded.
func (s *session) close() error {
	var all error
	for _, handle := range s.loaded {
		if _, err := (tpm2.FlushContext{FlushHandle: handle}).Execute(s.tpm); err != nil {
			all = errors.Join(all, explain("remove a key from the memory of the TPM", err))
		}
	}
	s.loaded = nil
	return all
}

// explain describes the failure of a command, with the next step for those that an operator can resolve.
func explain(what string, err error) error {
	var hint string
	switch {
	case errors.Is(err, tpm2.TPMRCAuthFail), errors.Is(err, tpm2.TPMRCBadAuth):
		hint = ": the owner or endorsement hierarchy of the TPM has a password, and it must have none (tpm2_changeauth)"
	case errors.Is(err, tpm2.TPMRCLockout):
		hint = ": the TPM is locked after wrong passwords (tpm2_dictionarylockout --clear-lockout)"
	case errors.Is(err, tpm2.TPMRCObjectMemory), errors.Is(err, tpm2.TPMRCSessionMemory):
		hint = ": the memory of the TPM is full; use " + DefaultPath + ", or remove other keys from it (tpm2_flushcontext)"
	case errors.Is(err, tpm2.TPMRCInitialize):
		hint = ": the TPM was not started (tpm2_startup --clear)"
	}
	return fmt.Errorf("the TPM could not %s: %w%s", what, err, hint)
}

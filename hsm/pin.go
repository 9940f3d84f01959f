package hsm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/term"
)

// maxPIN is the maximum length of a PIN, in bytes.
const maxPIN = 255

// redacted is printed instead of a PIN.
const redacted = "[PIN]"

// PIN is the secret with which a user logs in to an HSM. Every fmt verb, logs, text and JSON show "[PIN]" instead. The
// zero value is no PIN.
type PIN struct {
	secret *string // it is a pointer, so that printing a surrounding struct by reflection does not show the secret
}

// NewPIN returns a PIN of 1 to 255 bytes without line breaks or NUL.
func NewPIN(secret []byte) (PIN, error) {
	switch {
	case len(secret) == 0:
		return PIN{}, errors.New("the PIN is empty")
	case len(secret) > maxPIN:
		return PIN{}, fmt.Errorf("the PIN is longer than %d bytes", maxPIN)
	case bytes.ContainsAny(secret, "\r\n\x00"):
		return PIN{}, errors.New("the PIN holds a line break or a NUL: give one line, with nothing but the PIN")
	}
	s := string(secret)
	return PIN{&s}, nil
}

func (p PIN) empty() bool { return p.secret == nil }

// reveal returns the secret. Only Pass and the calls into the library use it.
func (p PIN) reveal() string {
	if p.secret == nil {
		return ""
	}
	return *p.secret
}

// String returns "[PIN]".
func (p PIN) String() string { return redacted }

// GoString returns "[PIN]".
func (p PIN) GoString() string { return redacted }

// Format writes "[PIN]" for every verb.
func (p PIN) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue returns "[PIN]".
func (p PIN) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns "[PIN]", for JSON and YAML.
func (p PIN) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// FileModeError reports that users other than the owner can access a PIN file. Only the group may read it.
type FileModeError struct {
	Path string
	Mode fs.FileMode
}

func (e *FileModeError) Error() string {
	return fmt.Sprintf("PIN file %s has mode %04o, so others can reach it: chmod 0600 (or 0640 for the service's own group), and change the PIN if they may have seen it", e.Path, e.Mode.Perm())
}

// ReadPINFile reads a PIN from a regular file with one line. The owner may have all permissions. The group may read the
// file, so that an administrator can own the PIN file of a service. For any other permission ReadPINFile returns a
// [FileModeError].
func ReadPINFile(path string) (PIN, error) {
	// Without O_NONBLOCK, opening a FIFO would block the process.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) //nolint:gosec // the operator chooses the file
	if err != nil {
		return PIN{}, fmt.Errorf("PIN file: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return PIN{}, fmt.Errorf("PIN file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return PIN{}, fmt.Errorf("PIN file %s is not a regular file", path)
	}
	if info.Mode().Perm()&0o027 != 0 {
		return PIN{}, &FileModeError{Path: path, Mode: info.Mode()}
	}
	pin, err := ReceivePIN(f)
	if err != nil {
		return PIN{}, fmt.Errorf("%w (in %s)", err, path)
	}
	return pin, nil
}

// Pass writes the PIN to a pipe. Another process of the same program reads it with [ReceivePIN]. This is the only
// exported method that reveals the secret. It must not be used to write files.
func (p PIN) Pass(w io.Writer) error {
	_, err := io.WriteString(w, p.reveal()+"\n")
	return err
}

// ReceivePIN reads a PIN from r up to its end. It ignores one line break at the end.
func ReceivePIN(r io.Reader) (PIN, error) {
	raw, err := io.ReadAll(io.LimitReader(r, maxPIN+3)) // PIN, CR and LF, and one byte to detect a longer PIN
	if err != nil {
		return PIN{}, fmt.Errorf("read the PIN: %w", err)
	}
	return NewPIN(bytes.TrimSuffix(bytes.TrimSuffix(raw, []byte("\n")), []byte("\r")))
}

// ReadPINCredential reads a PIN that systemd passes to a service with LoadCredential= or LoadCredentialEncrypted= in
// the unit (systemd.exec(5)). The PIN is in the file with this name in $CREDENTIALS_DIRECTORY.
func ReadPINCredential(name string) (PIN, error) {
	if name == "" || name == "." || name == ".." || strings.ContainsRune(name, '/') {
		return PIN{}, fmt.Errorf("%q is not the name of a systemd credential", name)
	}
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return PIN{}, fmt.Errorf("there is no credential %q because systemd has set no CREDENTIALS_DIRECTORY: add LoadCredential=%s:<file> to the unit, or use a PIN file", name, name)
	}
	return ReadPINFile(filepath.Join(dir, name))
}

// PromptNewPIN prompts twice for a new PIN on a terminal without echo. Both inputs must be equal.
func PromptNewPIN(terminal *os.File, prompt string) (PIN, error) {
	first, err := PromptPIN(terminal, prompt)
	if err != nil {
		return PIN{}, err
	}
	second, err := PromptPIN(terminal, "The same again: ")
	if err != nil {
		return PIN{}, err
	}
	if first.reveal() != second.reveal() {
		return PIN{}, errors.New("the two PINs differ: run the command again")
	}
	return first, nil
}

// PromptPIN prompts for a PIN on a terminal without echo.
func PromptPIN(terminal *os.File, prompt string) (PIN, error) {
	fd := int(terminal.Fd())
	if !term.IsTerminal(fd) {
		return PIN{}, errors.New("there is no terminal to ask for the PIN: use a PIN file or a systemd credential")
	}
	if _, err := io.WriteString(terminal, prompt); err != nil {
		return PIN{}, fmt.Errorf("ask for the PIN: %w", err)
	}
	raw, err := term.ReadPassword(fd)
	_, _ = io.WriteString(terminal, "\r\n") // writes the line break that was not echoed
	if err != nil {
		return PIN{}, fmt.Errorf("ask for the PIN: %w", err)
	}
	return NewPIN(raw)
}

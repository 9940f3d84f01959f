package devca

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/brevet-pki/brevet/internal/cli/file"
)

// SoftHSM (2.6.1) rewrites the file token.object of a token in place at every login. If the process is killed during
// the write, the file is empty, and the token with all its keys is lost. After the creation of a development CA the
// content no longer changes. Brevet therefore keeps a copy of the file outside the token's directory.

func tokenObject(dir string) (string, error) {
	tokens := filepath.Join(dir, "softhsm", "tokens")
	found, err := os.ReadDir(tokens)
	if err != nil {
		return "", err
	}
	if len(found) != 1 {
		return "", fmt.Errorf("%s holds %d tokens where there should be one: start with another --directory", tokens, len(found))
	}
	return filepath.Join(tokens, found[0].Name(), "token.object"), nil
}

func tokenCopy(dir string) string { return filepath.Join(dir, "token.object") }

// keepToken copies token.object before the token is used.
func keepToken(dir string) error {
	path, err := tokenObject(dir)
	if err != nil {
		return err
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return file.WriteNew(tokenCopy(dir), content, 0o600)
}

// mendToken restores token.object from the copy if a killed process has truncated it.
func mendToken(dir string) error {
	kept, err := os.ReadFile(tokenCopy(dir))
	if err != nil {
		return err
	}
	path, err := tokenObject(dir)
	if err != nil {
		return err
	}
	if info, err := os.Stat(path); err != nil || info.Size() >= int64(len(kept)) {
		return err
	}
	mended := path + ".mended"
	if err := os.Remove(mended); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := file.WriteNew(mended, kept, 0o600); err != nil {
		return err
	}
	return os.Rename(mended, path)
}

package main

import (
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/brevet-pki/brevet/cmd/internal/config"
	"github.com/brevet-pki/brevet/enroll"
)

// settings is the configuration file.
type settings struct {
	// Directory holds the credential; the agent writes nowhere else.
	Directory string `yaml:"directory"`
	// TokenFile holds an enrollment token. It is read only when there is no valid credential, or when the server
	// refuses to renew the one there is. A token that was spent may stay there: it is passed over.
	TokenFile string `yaml:"token_file"`
	// Server is the host:port to ask, in place of the one that the token named.
	Server string `yaml:"server"`
	// Lifetime is how long a certificate shall live; unset for the profile's default.
	Lifetime time.Duration  `yaml:"lifetime"`
	KeyType  enroll.KeyType `yaml:"key_type"`
	// Reload is a command and its arguments, run without a shell after each new credential.
	Reload    []string `yaml:"reload"`
	LogFormat string   `yaml:"log_format"`
}

func loadSettings(path string) (settings, error) {
	s := settings{LogFormat: "text"}
	if err := config.Load(path, &s); err != nil {
		return s, err
	}
	fault := func(key, problem string) error { return &config.Error{File: path, Key: key, Problem: problem} }
	switch {
	case s.Directory == "":
		return s, fault("directory", "name the directory that the credential is kept in, such as /var/lib/brevet-agent")
	case s.TokenFile == "-":
		return s, fault("token_file", "name a file; standard input is for the enroll command's --token-file -")
	case s.Lifetime < 0:
		return s, fault("lifetime", "a lifetime is positive; leave it out for the profile's default")
	case s.LogFormat != "text" && s.LogFormat != "json":
		return s, fault("log_format", fmt.Sprintf("%q is no format: use text or json", s.LogFormat))
	case len(s.Reload) > 0 && s.Reload[0] == "":
		return s, fault("reload", "the first item names the command")
	}
	if s.Server != "" {
		if err := enroll.CheckServer(s.Server); err != nil {
			return s, fault("server", err.Error())
		}
	}
	return s, nil
}

func (s settings) logger(w io.Writer) *slog.Logger {
	if s.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, nil))
	}
	return slog.New(slog.NewTextHandler(w, nil))
}

// token reads the token file. That there is none to be had is ErrNoToken.
func (s settings) token() (enroll.Token, error) {
	if s.TokenFile == "" {
		return enroll.Token{}, fmt.Errorf("%w, for token_file is not set", enroll.ErrNoToken)
	}
	t, err := enroll.ReadTokenFile(s.TokenFile, nil)
	if err != nil {
		return t, fmt.Errorf("%w that can be used: %w", enroll.ErrNoToken, err)
	}
	return t, nil
}

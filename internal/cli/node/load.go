package node

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/spf13/viper"

	"github.com/brevet-pki/brevet/internal/cli"
	"github.com/brevet-pki/brevet/internal/config"
)

// ConfigFlag adds the flag --config, whose value [Load] reads.
func ConfigFlag(cmd *cobra.Command) {
	cmd.Flags().String("config", "", "path of the configuration file (default: brevet.yaml here or in /etc/brevet)")
}

// keyFlags maps configuration keys to the flags of brevet serve that override them.
var keyFlags = map[string]string{"log.format": "log-format", "log.level": "log-level"}

// KeyFlags adds the flags that override keys of the configuration.
func KeyFlags(cmd *cobra.Command) {
	cmd.Flags().String("log-format", "", "format of log records, text or json; overrides log.format in the configuration")
	cmd.Flags().String("log-level", "", "minimum level of log records; overrides log.level in the configuration")
}

// environment describes the environment variables of the server.
var environment = config.Environment{
	Prefix: "BREVET_",
	Secrets: map[string]string{
		"HSM_PIN": "write the PIN to a file and set hsm.pin_file", "PIN": "write the PIN to a file and set hsm.pin_file",
		"TOKEN": "write the enrollment token to a file, for --token-file",
	},
	Others: append([]string{"BREVET_AGENT_*"}, cli.Variables...),
}

// defaultConfigPaths are the configuration files of commands without --config. A command uses the first one that
// exists.
var defaultConfigPaths = [...]string{"brevet.yaml", "/etc/brevet/brevet.yaml"}

// A Loaded is a configuration together with the origin of each value.
type Loaded struct {
	Config

	file   *viper.Viper
	values map[string]config.Value // values from the environment and flags, keyed by configuration key
}

// LoadConfig reads the configuration of a command, as [Load] does.
func LoadConfig(cmd *cobra.Command) (Config, error) {
	l, err := Load(cmd)
	return l.Config, err
}

// Load reads the configuration of a command. It reads the file, applies the environment variables, and then the flags.
// Each of them overrides the earlier values. Load refuses unknown keys. It checks the values without reading other
// files or using the network.
func Load(cmd *cobra.Command) (Loaded, error) {
	path, err := cmd.Flags().GetString("config")
	if err != nil {
		return Loaded{}, err
	}
	return load(path, cmd.Flags())
}

// ReadConfig reads a configuration file and the environment, as [Load] does.
func ReadConfig(path string) (Config, error) {
	l, err := load(path, pflag.NewFlagSet("", pflag.ContinueOnError))
	return l.Config, err
}

func load(named string, flags *pflag.FlagSet) (Loaded, error) {
	file, err := findConfig(named)
	if err != nil {
		return Loaded{}, err
	}
	l := Loaded{Config: DefaultConfig(), file: file}
	err = l.read(flags)
	var wrong *config.Error
	if errors.As(err, &wrong) {
		return l, cli.WrongArgument(wrong)
	}
	return l, err
}

// findConfig returns a viper for the named configuration file, or else for the first default file that exists. It sets
// the complete path: viper's own search would accept any file with the name brevet, whatever its extension.
func findConfig(named string) (*viper.Viper, error) {
	paths := defaultConfigPaths[:]
	if named != "" {
		paths = []string{named}
	}
	for _, path := range paths {
		v := viper.New()
		v.SetConfigFile(path)
		v.SetConfigType("yaml")
		err := v.ReadInConfig()
		var parse viper.ConfigParseError
		switch {
		case err == nil, errors.As(err, &parse): // read reports a syntax error with its line
			return v, nil
		case named == "" && errors.Is(err, fs.ErrNotExist):
			continue
		}
		return nil, fmt.Errorf("no configuration: %w; name it with --config", err)
	}
	return nil, fmt.Errorf("no configuration: there is no %s; write one of them, or name another with --config", strings.Join(paths, " and no "))
}

// read decodes the file, applies the values that override it, and checks the result.
func (l *Loaded) read(flags *pflag.FlagSet) error {
	path := l.file.ConfigFileUsed()
	if err := config.Load(path, &l.Config); err != nil {
		return err
	}
	if err := environment.Check(l.Config, os.Environ()); err != nil {
		return err
	}
	values, err := overrides(l.file, flags)
	if err != nil {
		return err
	}
	if err := config.Override(&l.Config, values); err != nil {
		return err
	}
	l.values = map[string]config.Value{}
	for _, v := range values {
		l.values[v.Key] = v
	}
	return config.Attribute(l.Check(), path, values)
}

// overrides returns the values from the environment and flags. A flag overrides the environment variable of the same
// key.
func overrides(v *viper.Viper, flags *pflag.FlagSet) ([]config.Value, error) {
	variables := environment.Variables(Config{})
	for key, name := range variables {
		if err := v.BindEnv(key, name); err != nil {
			return nil, err
		}
	}
	set := map[string]config.Value{}
	for _, value := range environment.Values(Config{}, os.Getenv) {
		set[value.Key] = value
	}
	for key, name := range keyFlags {
		flag := flags.Lookup(name)
		if flag == nil || !flag.Changed {
			continue
		}
		if err := v.BindPFlag(key, flag); err != nil {
			return nil, err
		}
		set[key] = config.Value{Key: key, Origin: config.FromFlag, Name: "--" + name}
	}
	var values []config.Value
	for _, key := range slices.Sorted(maps.Keys(set)) {
		value := set[key]
		value.Text = v.GetString(key)
		values = append(values, value)
	}
	return values, nil
}

// Print writes each configuration key with its value and its origin: file, environment, flag or default. The output
// contains no secrets, because PINs are in separate files.
func (l *Loaded) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range config.Settings(l.Config) {
		value := s.Value
		if value == "" {
			value = `""`
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", s.Key, value, l.origin(s.Key))
	}
	return t.Flush()
}

// origin returns the origin of a key's value, with the name of the variable or flag.
func (l *Loaded) origin(key string) string {
	if v, ok := l.values[key]; ok {
		return fmt.Sprintf("%s (%s)", v.Origin, v.Name)
	}
	if group, _, _ := strings.Cut(key, "["); l.file.InConfig(group) {
		return string(config.FromFile)
	}
	return string(config.FromDefault)
}

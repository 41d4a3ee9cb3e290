// Package config loads a service's configuration: the defaults in code, over
// them one YAML file, over that the environment, over that flags. Keys that
// the configuration does not have are errors, with the line they stand on.
//
// A configuration is a struct; every field has a `yaml` tag with its key and a
// `doc` tag with its meaning, unit and bounds. Key a.b is the flag --a.b and
// the environment variable PICKET_<SERVICE>__A__B.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"
	"time"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/providers/rawbytes"
	"github.com/knadh/koanf/providers/structs"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"
	yamlv3 "go.yaml.in/yaml/v3"
)

// Validator is what a configuration must offer: messages name the YAML key.
type Validator interface{ Validate() error }

// ErrDone is returned by Load when a flag asked only to print or check the
// configuration, or for help, and that was done: exit with success.
var ErrDone = errors.New("nothing to run")

// Load builds a configuration of type C for the named service from its
// defaults, the file named by --config, environ (os.Environ form) and args.
// What --print-config, --check-config and --help print goes to out.
func Load[C Validator](service string, defaults C, args, environ []string, out io.Writer) (C, error) {
	var zero C
	fs := pflag.NewFlagSet("picket-"+service, pflag.ContinueOnError)
	fs.SetOutput(out)
	fs.SortFlags = false
	file := fs.String("config", "", "YAML file with the configuration")
	printIt := fs.Bool("print-config", false, "print the whole configuration as it would be used, and exit")
	checkIt := fs.Bool("check-config", false, "check the configuration, and exit")
	for _, k := range Keys(defaults) {
		k.flag(fs)
	}
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return zero, ErrDone
		}
		return zero, err
	}
	if fs.NArg() > 0 {
		return zero, fmt.Errorf("unexpected argument %q: settings are flags (--help lists them)", fs.Arg(0))
	}

	k := koanf.New(".")
	if err := k.Load(structs.Provider(defaults, "yaml"), nil); err != nil {
		return zero, fmt.Errorf("defaults: %w", err)
	}
	known := map[string]bool{}
	for _, key := range Keys(defaults) {
		known[key.Name] = true
	}
	if *file != "" {
		data, err := os.ReadFile(*file)
		if err != nil {
			return zero, fmt.Errorf("configuration file: %w", err)
		}
		// A strict pass first: it knows the line of an unknown key or a
		// wrong type, which the merge below does not.
		probe := defaults
		dec := yamlv3.NewDecoder(bytes.NewReader(data))
		dec.KnownFields(true)
		if err := dec.Decode(&probe); err != nil && !errors.Is(err, io.EOF) {
			return zero, fmt.Errorf("%s: %w", *file, tidy(err))
		}
		if err := k.Load(rawbytes.Provider(data), yaml.Parser()); err != nil {
			return zero, fmt.Errorf("%s: %w", *file, err)
		}
	}
	prefix := "PICKET_" + strings.ToUpper(strings.ReplaceAll(service, "-", "_")) + "__"
	var unknown error
	if err := k.Load(env.Provider(".", env.Opt{Prefix: prefix, EnvironFunc: func() []string { return environ },
		TransformFunc: func(name, v string) (string, any) {
			key := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, prefix), "__", "."))
			if !known[key] {
				unknown = fmt.Errorf("environment variable %s: there is no setting %s", name, key)
			}
			return key, v
		}}), nil); err != nil {
		return zero, fmt.Errorf("environment: %w", err)
	}
	if unknown != nil {
		return zero, unknown
	}
	if err := k.Load(posflag.ProviderWithFlag(fs, ".", k, func(f *pflag.Flag) (string, any) {
		if !known[f.Name] || !f.Changed {
			return "", nil
		}
		return f.Name, posflag.FlagVal(fs, f)
	}), nil); err != nil {
		return zero, fmt.Errorf("flags: %w", err)
	}
	var cfg C
	if err := k.UnmarshalWithConf("", &cfg, koanf.UnmarshalConf{Tag: "yaml"}); err != nil {
		return zero, fmt.Errorf("configuration: %w", err)
	}
	if *printIt {
		b, err := yamlv3.Marshal(cfg)
		if err != nil {
			return zero, fmt.Errorf("print configuration: %w", err)
		}
		if _, err := out.Write(b); err != nil {
			return zero, err
		}
		return zero, ErrDone
	}
	if err := cfg.Validate(); err != nil {
		return zero, fmt.Errorf("configuration: %w", err)
	}
	if *checkIt {
		if _, err := fmt.Fprintln(out, "configuration is valid"); err != nil {
			return zero, err
		}
		return zero, ErrDone
	}
	return cfg, nil
}

// tidy turns the YAML decoder's words into a user's.
func tidy(err error) error {
	var te *yamlv3.TypeError
	if !errors.As(err, &te) {
		return err
	}
	lines := make([]string, len(te.Errors))
	for i, e := range te.Errors {
		if at, rest, ok := strings.Cut(e, ": field "); ok {
			key, _, _ := strings.Cut(rest, " not found in type ")
			e = at + ": there is no setting " + key + " here"
		}
		lines[i] = e
	}
	return errors.New(strings.Join(lines, "; "))
}

// Key is one setting.
type Key struct {
	Name    string // dotted YAML path
	Doc     string
	Default reflect.Value
}

// Keys lists the settings of a configuration struct in order. Lists of
// structs are one key, which only the file can set.
func Keys(cfg any) []Key { return keys(reflect.ValueOf(cfg), "") }

func keys(v reflect.Value, prefix string) []Key {
	var out []Key
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if name == "" || name == "-" {
			continue
		}
		if f.Type.Kind() == reflect.Struct {
			out = append(out, keys(v.Field(i), prefix+name+".")...)
			continue
		}
		out = append(out, Key{prefix + name, f.Tag.Get("doc"), v.Field(i)})
	}
	return out
}

func (k Key) flag(fs *pflag.FlagSet) {
	switch d := k.Default.Interface().(type) {
	case time.Duration:
		fs.Duration(k.Name, d, k.Doc)
	case []string:
		fs.StringSlice(k.Name, d, k.Doc)
	default:
		switch k.Default.Kind() {
		case reflect.String:
			fs.String(k.Name, k.Default.String(), k.Doc)
		case reflect.Bool:
			fs.Bool(k.Name, k.Default.Bool(), k.Doc)
		case reflect.Int, reflect.Int32, reflect.Int64:
			fs.Int64(k.Name, k.Default.Int(), k.Doc)
		case reflect.Float64:
			fs.Float64(k.Name, k.Default.Float(), k.Doc)
		}
	}
}

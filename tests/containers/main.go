// What the engine and Compose make of our files, told by their own readers.
//
//	program compose FILE        the project, as JSON
//	program dockerfile FILE     its instructions, as JSON: each a word and what it is given
//	program context FOLDER      the files that would go to the engine
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

func main() {
	read := map[string]func(string) (any, error){
		"compose": compose, "dockerfile": dockerfile, "context": sent,
	}[os.Args[1]]
	told, err := read(os.Args[2])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(told)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func compose(file string) (any, error) {
	options, err := cli.NewProjectOptions([]string{file})
	if err != nil {
		return nil, err
	}
	return options.LoadProject(context.Background())
}

func dockerfile(file string) (any, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	parsed, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	problems := []string{}
	for _, each := range parsed.Warnings {
		problems = append(problems, each.Short)
	}
	lint := linter.New(&linter.Config{
		Warn: func(rule, description, url, detail string, _ []parser.Range) {
			problems = append(problems, rule+": "+detail)
		},
	})
	if _, _, err := instructions.Parse(parsed.AST, lint); err != nil {
		return nil, err
	}
	words := [][2]string{}
	for _, each := range parsed.AST.Children {
		_, given, _ := strings.Cut(each.Original, " ")
		words = append(words, [2]string{strings.ToUpper(each.Value), given})
	}
	return map[string]any{"instructions": words, "problems": problems}, nil
}

func sent(folder string) (any, error) {
	file, err := os.Open(filepath.Join(folder, ".dockerignore"))
	if err != nil {
		return nil, err
	}
	patterns, err := ignorefile.ReadAll(file)
	if err != nil {
		return nil, err
	}
	matcher, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, err
	}
	files := []string{}
	return &files, filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		inside, err := filepath.Rel(folder, path)
		if err != nil {
			return err
		}
		ignored, err := matcher.MatchesOrParentMatches(inside)
		if !ignored {
			files = append(files, inside)
		}
		return err
	})
}

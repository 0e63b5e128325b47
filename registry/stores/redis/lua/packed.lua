-- Many values as one, and back: their lengths, then the values.
local function packed(values)
  local lengths = {}
  for i = 1, #values do lengths[i] = #values[i] end
  return table.concat(lengths, ' ') .. '\n' .. table.concat(values)
end
local function unpacked(text)
  local values = {}
  local start = string.find(text, '\n', 1, true)
  local at = start + 1
  for word in string.gmatch(string.sub(text, 1, start - 1), '%d+') do
    local length = tonumber(word)
    values[#values + 1] = string.sub(text, at, at + length - 1)
    at = at + length
  end
  return values
end
